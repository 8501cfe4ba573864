"""Load time and memory of an annotation file of COCO train2017's size, beside torchvision's CocoDetection.

    python benchmarks/annotation_memory.py [--images 118287] [--objects 860001] [--workers 4]

Each dataset is loaded in a fresh process; then forked workers of a DataLoader read every target once between them,
in random order, and no image. USS: memory that a process shares with no other (Private_Clean + Private_Dirty);
PSS: that and its part of the shared; both from /proc/PID/smaps_rollup, of a worker after its last target, of the
main process at the end. The row `nothing` is the same without any annotations: Python, torch and the libraries.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CocoDetection

from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.data.coco import CocoDataset
from norton_det.data.reading import Task

HEIGHT, WIDTH = 480, 640
EMPTY_IMAGES = 1021 / 118_287  # train2017's share of images without objects
CROWDS = 0.01
Reader = Callable[[int], Any]


def write_instances(file: Path, images: int, objects: int) -> None:
    """A file like instances_train2017.json; the polygons have as many points as COCO's, median 16, mean 22."""
    rng = np.random.default_rng(0)
    with file.open("w") as out:
        categories = [{"supercategory": "thing", "id": id, "name": f"thing {id}"} for id in category_ids()]
        out.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)}, "images": [')
        for number in range(images):
            out.write(", " * (number > 0) + json.dumps(synthetic_image(5 * number + 9)))
        out.write('], "annotations": [')
        owners = 5 * rng.integers(0, int(images * (1 - EMPTY_IMAGES)), objects) + 9
        for number, owner in enumerate(owners.tolist()):
            out.write(", " * (number > 0) + json.dumps(synthetic_object(rng, number + 1, owner)))
        out.write("]}")


def category_ids() -> list[int]:
    """80 ids from 1 to 90, with COCO's ten gaps."""
    return [id for id in range(1, 91) if id not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def synthetic_image(id: int) -> dict[str, Any]:
    name = f"{id:012}.jpg"
    return {
        "license": 4,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": HEIGHT,
        "width": WIDTH,
        "date_captured": "2013-11-20 22:56:00",
        "flickr_url": f"http://farm9.staticflickr.com/8292/{id:010}_e0486b75b8_z.jpg",
        "id": id,
    }


def synthetic_object(rng: np.random.Generator, id: int, image_id: int) -> dict[str, Any]:
    width, height = np.minimum(rng.lognormal(4, 0.9, 2) + 4, (WIDTH, HEIGHT))
    left, top = rng.uniform(0, (WIDTH - width, HEIGHT - height))
    crowd = bool(rng.random() < CROWDS)
    return {
        "segmentation": synthetic_rle(rng) if crowd else [synthetic_polygon(rng, left, top, width, height)],
        "area": round(width * height * 0.6, 4),
        "iscrowd": int(crowd),
        "image_id": image_id,
        "bbox": [round(float(value), 2) for value in (left, top, width, height)],
        "category_id": category_ids()[rng.integers(80)],
        "id": id,
    }


def synthetic_polygon(rng: np.random.Generator, left: float, top: float, width: float, height: float) -> list[float]:
    points = max(3, int(rng.lognormal(np.log(16), 0.8)))
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = rng.uniform(0.6, 1, points)
    x = left + width / 2 * (1 + radii * np.cos(angles))
    y = top + height / 2 * (1 + radii * np.sin(angles))
    polygon: list[float] = np.stack([x, y], axis=1).round(2).flatten().tolist()
    return polygon


def synthetic_rle(rng: np.random.Generator) -> dict[str, Any]:
    counts = rng.integers(1, 600, 500).tolist()
    return {"counts": [*counts, HEIGHT * WIDTH - sum(counts)], "size": [HEIGHT, WIDTH]}


def load_nothing(file: Path) -> tuple[int, Reader]:
    return 1000, lambda index: index


def load_torchvision(file: Path) -> tuple[int, Reader]:
    dataset = CocoDetection(file.parent, file)
    return len(dataset), lambda index: dataset._load_target(dataset.ids[index])


def load_ours(task: Task) -> Callable[[Path], tuple[int, Reader]]:
    def load(file: Path) -> tuple[int, Reader]:
        files = DatasetFiles("synthetic", file.parent, file, keeps_ids=True)
        dataset = CocoDataset(files, read_categories(files, task), task, training=True)
        return len(dataset), dataset._read_objects

    return load


LOADERS = {
    "nothing": load_nothing,
    "torchvision CocoDetection": load_torchvision,
    "ours, bbox": load_ours("bbox"),
    "ours, segm": load_ours("segm"),
}


class Targets(Dataset[None]):
    """Targets that are read and forgotten."""

    def __init__(self, count: int, reader: Reader) -> None:
        self.count = count
        self.reader = reader

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> None:
        self.reader(index)


def memory(pid: int | str = "self") -> dict[str, float]:
    """USS and PSS of a process in MiB."""
    fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kib = {name.rstrip(":"): int(value) for name, value in fields.items()}
    return {"USS": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, "PSS": kib["Pss"] / 1024}


def measure(name: str, file: Path, workers: int) -> dict[str, Any]:
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        count, reader = LOADERS[name](file)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    last: dict[int, dict[str, float]] = {}
    loader = DataLoader(
        Targets(count, reader),
        batch_size=max(1, min(256, count // (4 * workers))),
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        num_workers=workers,
        multiprocessing_context="fork",
        collate_fn=lambda batch: (multiprocessing.current_process().pid, memory()),
    )
    for pid, used in loader:
        last[pid] = used
    return {"seconds": seconds, "peak": peak, "main": memory(), "workers": list(last.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--file", type=Path, help="an annotation file to take instead of a synthetic one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.file or Path(folder) / "instances_synthetic.json"
        if not arguments.file:
            write_instances(file, arguments.images, arguments.objects)
        print(f"{file.stat().st_size / 2**20:.0f} MiB of JSON; MiB; {arguments.workers} workers, lowest to highest\n")
        print("| dataset | load s | peak RSS while loading | main USS | worker USS | worker PSS |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in arguments.only:
            print(row(name, in_fresh_process(name, file, arguments.workers)), flush=True)


def in_fresh_process(name: str, file: Path, workers: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, file, workers).result()


def row(name: str, found: dict[str, Any]) -> str:
    ranges = []
    for kind in ("USS", "PSS"):
        values = [worker[kind] for worker in found["workers"]]
        ranges.append(f"{min(values):.0f} to {max(values):.0f}")
    cells = [f"{found['seconds']:.1f}", f"{found['peak']:.0f}", f"{found['main']['USS']:.0f}", *ranges]
    return f"| {' | '.join([name, *cells])} |"


if __name__ == "__main__":
    main()
