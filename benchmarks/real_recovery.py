"""What recovery without labels brings back on a trained ResNet-50's filters and real images.

    python benchmarks/real_recovery.py --weights resnet50.pth --train coco/train2017 --test coco/val2017

Measured from the stem to layer3, on weights and with strides as `benchmarks/real_filters.py` has them: the relative
error of each stage's output, decomposed at ranks 1 to 4 with nothing pruned, by the paper's plans, and by the
searched plans of the same MACs; fitted on images of one folder, measured on the other's. Writes
docs/without_labels/real_filters.json, which `benchmarks/without_labels.py` puts on its page; what stands there is not
measured again.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from real_filters import LAYERS, MEASURED, compare, image_paths, load_images, load_network, stage_outputs
from torch import Tensor
from torchvision.models import ResNet

from norton_det.compression.compress import compress
from norton_det.compression.plan import CompressionPlan, load_plan
from norton_det.compression.recover import recover
from norton_det.compression.search.budget import Budget, Scope
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities
from norton_det.files import write_json
from norton_det.models.channels import read_body

RESULT = Path(__file__).parent.parent / "docs/without_labels/real_filters.json"
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PRESETS = ("norton-43", "norton-59", "norton-77")
TEST_IMAGES = 96


def plans(network: ResNet, images: list[Tensor]) -> dict[str, Callable[[], CompressionPlan]]:
    """What is measured, each made when it is asked for; the search takes long."""
    scope, body = Scope(network, False, None), read_body(network)
    sensitivities = cache(lambda: measure_sensitivities(network, images))

    def searched(preset: str) -> CompressionPlan:
        share = scope.cost(load_plan(preset, body), "macs") / scope.cost(CompressionPlan(), "macs")
        return best_plan(network, sensitivities(), Budget("macs", share))[0]

    return {
        **{f"rank {rank}": partial(CompressionPlan, dict.fromkeys(LAYERS, rank)) for rank in (1, 2, 3, 4)},
        **{f"{name}, rank {rank}": partial(load_plan, name, body, rank) for rank in (1, 3) for name in PRESETS},
        **{f"searched, MACs of {name}": partial(searched, name) for name in PRESETS},
    }


def errors(network: ResNet, images: list[Tensor], test: Tensor, plan: CompressionPlan, steps: int) -> dict[str, Any]:
    """The stages' errors after compression, with BatchNorm's statistics estimated anew, and restored."""
    compressed, report = compress(network, plan)
    dense = stage_outputs(network, test)

    def of(model: Any) -> list[float]:
        found = compare(model, test, dense, report.kept)
        return [found[stage] for stage in MEASURED]

    result: dict[str, Any] = {"compressed": of(compressed)}
    result["BatchNorm"] = of(recover(compressed, network, images, report.kept, steps=0)[0])
    started = time.perf_counter()
    restored, _ = recover(compressed, network, images, report.kept, steps=steps)
    return {**result, "restored": of(restored), "seconds": round(time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a ResNet-50's weights, at least up to layer3")
    parser.add_argument("--train", required=True, type=Path, help="the folder of images to fit on")
    parser.add_argument("--test", required=True, type=Path, help="the folder of images to measure on")
    parser.add_argument("--count", type=int, default=128, help="how many images to fit on")
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps of each part")
    arguments = parser.parse_args()
    logging.getLogger("norton_det").setLevel(logging.ERROR)  # that layer4 is missing is no news
    torch.manual_seed(0)  # what the file lacks is random

    network = load_network(arguments.weights)
    images = list(load_images(image_paths(arguments.train, arguments.count), **RAW))
    test = load_images(image_paths(arguments.test, TEST_IMAGES))
    how = {"images": arguments.count, "steps": arguments.steps}
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = result["rows"] if result.get("how") == how else {}
    for name, plan in plans(network, images).items():
        if name not in rows:
            rows[name] = errors(network, images, test, plan(), arguments.steps)
            print(name, rows[name], flush=True)
            write_json(RESULT, {"how": how, "rows": rows}, indent=2)


if __name__ == "__main__":
    main()
