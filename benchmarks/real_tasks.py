"""What compression costs detectors of real photos, and what recovery without labels and fine-tuning bring back.

    python benchmarks/real_tasks.py --data DATA --weights resnet50_half_width.pth [--tasks cells] [--parts plans]

DATA has a folder a task with `images`, `train.json` and `val.json`; the weights are those of a ResNet-50 of half
width, trained on photos. Trains the dense detectors; compresses each by the plans, restores it on training images
without reading a label, measures AP; then the same for smaller images, with fewer and with more photos, with more
steps, with the other criterion, and fine-tuned with labels. Writes docs/without_labels/real_tasks.json and the page
docs/without_labels.md.
What stands in the folder already is not made again, and a training that was stopped goes on.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kinds import run
from without_labels_page import RESULTS, read, write_page

from norton_det.analysis.complexity import count_detector, total
from norton_det.analysis.machine import describe_machine
from norton_det.api import load_detector
from norton_det.compression.recover import STEPS
from norton_det.files import write_json
from norton_det.models.smaller_images import size_settings

PLANS = {
    **{name: ["--plan", name, "--rank", "1"] for name in ("norton-43", "norton-47", "norton-59", "norton-69")},
    "norton-77": ["--plan", "norton-77"],
    "norton-77-all": ["--plan", "norton-77-all"],
}
SEARCHED = {"searched, half the MACs": "macs=0.5", "searched, MACs of norton-77": "macs=0.289"}
"""Budgets, in shares of the body's MACs."""
IMAGES = 200
LONGER = 4
COUNTS = (50, 100, 200)
SHARES = (0.7, 0.5)
"""Of the size of images."""
FINE_TUNED = {"norton-59": (0.5,), "norton-77": (0.1, 0.5, 1.0)}
FINE_RATE = {"compressed": 1.0, "restored": 0.2}
"""Of the dense detector's learning rate: a larger one first destroys what recovery gave."""
SIZES = [
    "model.width=0.5", "model.fpn_channels=128", "model.box_channels=512", "model.mask_channels=128",
    "model.keypoint_channels=128", "model.max_size=448",
]  # fmt: skip
TRAINING = [
    "model.min_size=[256,288,320]", "model.rpn_rois=128", "model.box_rois=64", "data.augmentation=photometric",
    "train.precision=bfloat16", "train.batch_size=4", "train.warmup_iterations=100",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A detector and how long it is trained."""

    detector: str
    epochs: float
    lr: float
    words: tuple[str, ...] = ()
    size: tuple[int, int] = (320, 427)
    """(height, width) in pixels at which MACs are counted."""


TASKS = {
    "cells": Task("faster_rcnn", 12, 1e-3, ("model.box_rois=128",)),
    "animals": Task("mask_rcnn", 14, 5e-4, ("model.norm=frozen",)),
    "persons": Task(
        "keypoint_rcnn",
        30,
        1e-3,
        ("model.norm=frozen", "model.min_size=[224,256]", "model.max_size=352"),
        (256, 341),
    ),
}


@dataclass(frozen=True)
class Place:
    """A task's data, dense weights, and folder for what is made of them."""

    name: str
    data: Path
    start: Path
    folder: Path
    overrides: list[str]

    @property
    def task(self) -> Task:
        return TASKS[self.name]

    def path_of(self, name: str) -> Path:
        """Where what has this name lies."""
        return self.folder / name.replace(", ", "_").replace(" ", "_")

    @property
    def photo_names(self) -> list[str]:
        """The training images' file names."""
        told = json.loads((self.data / "train.json").read_text())["images"]
        return sorted({image["file_name"] for image in told})

    @property
    def dense(self) -> Path:
        return self.folder / "dense/model_final.pth"

    def train(self, folder: Path, *words: object) -> dict[str, dict[str, float]]:
        """A run's AP by what is detected, in percent; `words` follow the command's own."""
        result = folder / "evaluation/metrics.json"
        if not result.exists():
            data = [
                f"data.{split}={{images: {self.data / 'images'}, annotations: {self.data / name}.json}}"
                for split, name in (("train", "train"), ("test", "val"))
            ]
            kind = f"model.detector={self.task.detector}"
            is_stopped = "--eval-only" not in words and any(folder.glob("checkpoints/*"))
            run("train", "--config", "quickstart.yaml", f"output_dir={folder}", kind, "model.plan=none", *SIZES,
                *TRAINING, f"train.lr={self.task.lr}", *data, *self.task.words, *self.overrides, *words,
                *["--resume"] * is_stopped)  # fmt: skip
        metrics = json.loads(result.read_text())
        return {name: {key: values[key] for key in ("AP", "AP50")} for name, values in metrics.items()}

    def train_dense(self) -> dict[str, Any]:
        found = self.train(
            self.dense.parent, f"model.backbone_weights={self.start}", f"train.epochs={self.task.epochs}"
        )
        return {**found, **self.size(self.dense), "epochs": self.task.epochs}

    def size(self, weights: Path) -> dict[str, int]:
        """Parameters and MACs of the detector in a file."""
        counts = total(count_detector(load_detector(weights), *self.task.size))
        return {"parameters": counts.parameters, "macs": counts.macs}

    def photos(self, count: int, more: Path | None = None) -> Path:
        """A folder of the first so many training images, by name, and of all others of a folder `more`."""
        folder = self.folder / f"images_{count}{'_more' if more else ''}"
        names = self.photo_names[:count]
        others = sorted(more.glob("*.jpg")) if more else []
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*(self.data / "images" / name for name in names), *others]:
            (folder / path.name).unlink(missing_ok=True)
            (folder / path.name).symlink_to(path.resolve())
        return folder

    def compress(self, name: str, plan: list[str], images: Path | None, seed: int, *more: object) -> dict[str, Any]:
        """Compress and, where there are images, restore; AP, size and seconds."""
        folder = self.path_of(f"{name}-{seed}")
        weights, timing = folder / "model_final.pth", folder / "seconds.json"
        if not timing.exists():
            started = time.perf_counter()
            count = len(list(images.iterdir())) if images else 0
            words = ["--images", images, "--image-count", count] if images else []
            run("compress", "--weights", self.dense, *plan, *words, "--seed", seed, "--output", weights, *more)
            write_json(timing, round(time.perf_counter() - started))
        own = [f"model.{setting}=none" for setting in ("min_size", "max_size", "anchor_sizes")]
        found = self.train(folder, "--eval-only", f"model.weights={weights}", *own)
        return {**found, **self.size(weights), "seconds": json.loads(timing.read_text())}

    def shown_smaller(self, share: float) -> dict[str, Any]:
        """AP of the dense detector on images of a share of its size, which it has not learnt."""
        sizes = size_settings(load_detector(self.dense), share)
        words = f"model.min_size={list(sizes['min_size'])}", f"model.max_size={sizes['max_size']}"
        return self.train(self.path_of(f"dense, {share}"), "--eval-only", f"model.weights={self.dense}", *words)

    def search(self, name: str, budget: str, images: Path) -> list[str]:
        """A plan for a budget."""
        path = self.path_of(f"{name}.json")
        if not path.exists():
            run("search-plan", "--weights", self.dense, "--images", images, "--budget", budget,
                "--input-size", *self.task.size, "--output", path)  # fmt: skip
        return ["--plan", str(path)]


def note(task: str, part: str, name: str, seed: int, row: dict[str, Any]) -> None:
    """Add a row to docs/without_labels/real_tasks.json, by task, part, name and seed, and write the page anew."""
    rows = read("real_tasks") or {}
    rows["how"] = {"images": IMAGES, "machine": describe_machine(torch.device("cpu"))}
    rows.setdefault(task, {}).setdefault(part, {}).setdefault(name, {})[str(seed)] = row
    print(task, part, name, seed, row, flush=True)
    write_json(RESULTS / "real_tasks.json", rows, indent=1)
    write_page()


def measure_plans(place: Place, seeds: range, names: list[str]) -> None:
    """The plans straight after compression, and restored on IMAGES images."""
    images = place.photos(IMAGES)
    plans = {name: place.search(name, SEARCHED[name], images) if name in SEARCHED else PLANS[name] for name in names}
    for name, plan in plans.items():
        note(place.name, "compressed", name, 0, place.compress(f"{name}, compressed", plan, None, 0))
    for seed in seeds:
        for name, plan in plans.items():
            row = place.compress(name, plan, images, seed)
            note(place.name, "restored", name, seed, {**row, "steps": STEPS})


def measure_criterion(place: Place, seeds: range) -> None:
    """The other criterion, likewise."""
    images = place.photos(IMAGES)
    for seed in seeds:
        for name in ("norton-59", "norton-77"):
            row = place.compress(f"{name}, deviation", PLANS[name], images, seed, "--criterion", "deviation")
            note(place.name, "deviation", name, seed, row)


def measure_images(place: Place, seeds: range, foreign: Path | None) -> None:
    """`norton-77` with fewer images than IMAGES and with more, the steps the same."""
    every = len(place.photo_names)
    for seed in seeds:
        for count in (*COUNTS, every):
            name = "norton-77" if count == IMAGES else f"norton-77, {count} images"
            row = place.compress(name, PLANS["norton-77"], place.photos(count), seed)
            note(place.name, "images", str(count), seed, row)
        if foreign:
            images = place.photos(every, foreign)
            row = place.compress("norton-77, foreign images too", PLANS["norton-77"], images, seed)
            note(place.name, "images", "foreign too", seed, row)


def measure_sizes(place: Place, seeds: range) -> None:
    """The dense detector and `norton-77` for smaller images: as it is, and taught on IMAGES images."""
    images = place.photos(IMAGES)
    for share in SHARES:
        [pixels] = size_settings(load_detector(place.dense), share)["min_size"]
        note(place.name, "sizes", f"{share:.0%}, not learnt", 0, place.shown_smaller(share))
        for name, plan in {"": ["--plan", "none"], ", `norton-77`": PLANS["norton-77"]}.items():
            for seed in seeds:
                row = place.compress(f"{pixels} pixels{name}", plan, images, seed, "--size", pixels)
                note(place.name, "sizes", f"{share:.0%}, learnt{name}", seed, row)


def measure_longer(place: Place, seeds: range) -> None:
    """`norton-77` with LONGER times the steps, on all training images."""
    steps, count = LONGER * STEPS, len(place.photo_names)
    name = f"{steps} steps on {count} images"
    for seed in seeds:
        row = place.compress(f"norton-77, {name}", PLANS["norton-77"], place.photos(count), seed, "--steps", steps)
        note(place.name, "longer", name, seed, row)


def measure_fine_tuning(place: Place) -> None:
    """Fine-tuned with labels and the dense teacher, from compressed and from restored."""
    for name, shares in FINE_TUNED.items():
        for start, rate in FINE_RATE.items():
            folder = place.path_of(f"{name}, compressed-0" if start == "compressed" else f"{name}-0")
            for share in shares:
                row = place.train(
                    folder / f"tuned_{share}", f"model.weights={folder / 'model_final.pth'}",
                    f"model.teacher={place.dense}", f"train.epochs={share * place.task.epochs}",
                    f"train.warmup_iterations={round(share * 100)}", f"train.lr={rate * place.task.lr}",
                )  # fmt: skip
                note(place.name, f"fine-tuned, {start}", f"{name}, {share:.0%}", 0, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("output/real_tasks"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parts = ("plans", "criterion", "images", "sizes", "longer", "fine-tuning")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts, metavar="PART")
    plans = [*PLANS, *SEARCHED]
    parser.add_argument("--plans", nargs="+", choices=plans, default=plans, metavar="PLAN")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--foreign", type=Path, help="a folder of photos of other things, for the part `images`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every training run")
    args = parser.parse_args()
    seeds = range(args.seeds)
    for name in args.tasks:
        place = Place(name, args.data / name, args.weights, args.folder / name, args.overrides)
        note(name, "dense", "dense", 0, place.train_dense())
        if "plans" in args.parts:
            measure_plans(place, seeds, args.plans)
        if "criterion" in args.parts:
            measure_criterion(place, seeds)
        if "images" in args.parts:
            measure_images(place, seeds, args.foreign)
        if "sizes" in args.parts:
            measure_sizes(place, seeds)
        if "longer" in args.parts:
            measure_longer(place, seeds)
        if "fine-tuning" in args.parts:
            measure_fine_tuning(place)


if __name__ == "__main__":
    main()
