"""One training step of Faster R-CNN, dense against norton and norton-all, in turn: seconds and ratios.

    python benchmarks/training_step.py [--batch 2] [--image 800 800] [--precision float32] [--runs 3]

Each plan in both forms of its CP layers. Random weights, drawn boxes, SGD; losses as the training loop computes them,
backward and step.
"""

import argparse
from collections.abc import Callable

import torch

import norton_det
from norton_det.analysis.latency import interleaved_latency
from norton_det.engine.detection import detection_losses
from norton_det.layers.cp_conv import FORMS, CPConv2d, Form
from norton_det.models.precision import PRECISIONS
from norton_det.models.settings import write_settings


def training_step(
    plan: str | None, form: Form, precision: torch.dtype, images: list, targets: list
) -> Callable[[], None]:
    """A call that trains a new detector for one step; channels_last, as `train` runs it."""
    torch.manual_seed(0)
    detector = norton_det.build_detector("faster_rcnn", plan=plan).to(images[0].device).train()
    sides = images[0].shape[1:]
    write_settings(detector, {"min_size": (min(sides),), "max_size": max(sides)})  # trained on as they are
    detector.backbone.to(memory_format=torch.channels_last)
    for module in detector.modules():
        if isinstance(module, CPConv2d):
            module.form = form
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        losses = detection_losses(detector, (images, targets), device=images[0].device, precision=precision)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image", type=int, nargs=2, default=[800, 800])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plans", nargs="+", default=["norton-77", "norton-77-all"])
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.rand(3, *arguments.image, generator=generator).to(arguments.device) for _ in range(arguments.batch)
    ]
    corners = torch.rand(arguments.batch, 8, 2, generator=generator) * min(arguments.image) / 2
    targets = [
        {
            "boxes": torch.cat([corner, corner + 40 + corner.flip(0) / 2], dim=1).to(arguments.device),
            "labels": torch.arange(1, 9, device=arguments.device),
        }
        for corner in corners
    ]
    precision = PRECISIONS[arguments.precision]
    steps = {"dense": training_step(None, "dense", precision, images, targets)} | {
        f"{plan}, {form}": training_step(plan, form, precision, images, targets)
        for plan in arguments.plans
        for form in FORMS
    }
    latencies = interleaved_latency(steps, runs=arguments.runs, warmup=1)
    for name, latency in latencies.items():
        print(f"{name}: {latency.median / 1000:.3f} s a step, {latencies['dense'].median / latency.median:.2f}x")


if __name__ == "__main__":
    main()
