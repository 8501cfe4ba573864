"""A control for the drawn dataset: the quickstart's dense detector, trained on annotations that were dealt to the
wrong images. What it reaches is what knowing the dataset's habits is worth without looking.

    python benchmarks/shuffled_control.py [--output output/shuffled_control] [key=value ...]
"""

import argparse
import json
import random
from pathlib import Path

from norton_det.builders.resolve import resolve_dataset
from norton_det.cli.main import main
from norton_det.config import load_config
from norton_det.files import write_json

CONFIG = "quickstart.yaml"


def shuffled(content: dict, seed: int = 0) -> dict:
    """Every image's annotations go to another image of the same size, as a whole."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for image in content["images"]:
        by_size.setdefault((image["width"], image["height"]), []).append(image["id"])
    target = {}
    for ids in by_size.values():
        random.Random(seed).shuffle(ids)
        target |= dict(zip(ids, ids[1:] + ids[:1], strict=True))
    moved = [{**annotation, "image_id": target[annotation["image_id"]]} for annotation in content["annotations"]]
    return {**content, "annotations": moved}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/shuffled_control"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    train, test = (resolve_dataset(load_config(CONFIG), split) for split in ("train", "test"))
    annotations = args.output / "shuffled.json"
    write_json(annotations, shuffled(json.loads(train.annotations.read_text())))
    datasets = [
        f"data.train={{images: {train.images}, annotations: {annotations}}}",
        f"data.test={{images: {test.images}, annotations: {test.annotations}}}",
    ]
    main(["train", "--config", CONFIG, "model.plan=none", f"output_dir={args.output}", *datasets, *args.overrides])
