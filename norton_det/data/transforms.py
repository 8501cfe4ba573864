"""Augments an image with its boxes, masks and keypoints, by torchvision.transforms.v2 on tv_tensors.

Nothing here resizes, which is the model's task, except large-scale jitter, which sets its own size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from norton_det.data.reading import Task
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.names import did_you_mean

Target = dict[str, Any]
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]

JITTER_SIZE = 1024
JITTER_LONGEST = 2 * JITTER_SIZE
"""Pixels of the longest side that large-scale jitter makes, before it cuts."""
_IMAGENET_MEAN = (124, 116, 104)  # RGB of the padding: 0 once normalised


def training_transforms(preset: str, task: Task, keypoints: Keypoints | None = None) -> Transform:
    """Return the augmentation of training samples that has this name; images come out as float32 in [0, 1].

    For the task keypoints left and right ones of a mirrored image are swapped as `keypoints` says (None: COCO's 17).

        none         nothing
        flip         left-right with probability 1/2
        lsj          flip, large-scale jitter 0.1 to 2, crop or pad to 1024 x 1024 (arXiv:2012.07177)
        photometric  flip, and brightness, contrast, saturation, hue and channels distorted (arXiv:1512.02325)

    Raises:
        ValueError: the preset is unknown; the message names the known ones.
    """
    if preset not in _PRESETS:
        hint = did_you_mean(preset, _PRESETS)
        raise ValueError(f"unknown augmentation {preset!r}{hint} (known: {', '.join(_PRESETS)})")
    steps = _PRESETS[preset](partial(random_flip, mirrored=(keypoints or COCO_KEYPOINTS).flip))
    if task == "keypoints":
        steps.append(hide_keypoints_outside)
    if preset == "lsj":
        steps.append(v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_values_per_object))
    compose: Transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    return compose


def evaluation_transforms() -> Transform:
    """Return the transform of evaluation, which only makes images float32 in [0, 1]."""
    compose: Transform = v2.Compose([v2.ToDtype(torch.float32, scale=True)])
    return compose


def output_size(preset: str) -> int | None:
    """Return the side of the square images that a preset makes, or None if images keep their size."""
    return JITTER_SIZE if preset == "lsj" else None


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed torch's generator on the CPU from whole numbers inside the context, and restore it afterwards."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would seed the GPU's as well
        yield


def flip(image: Tensor, target: Target, mirrored: Sequence[int] = COCO_KEYPOINTS.flip) -> tuple[Tensor, Target]:
    """Mirror left and right: boxes to W - x; keypoints, which are pixel indices, to W - 1 - x.

    Unlike torchvision's flip it also swaps left and right keypoints; `mirrored` is `Keypoints.flip`.
    """
    image, target = v2.RandomHorizontalFlip(p=1.0)(image, target)
    if "keypoints" in target:
        keypoints = target["keypoints"]
        target["keypoints"] = tv_tensors.wrap(keypoints[:, list(mirrored)], like=keypoints)
        target["visibility"] = target["visibility"][:, list(mirrored)]
    return image, target


def random_flip(image: Tensor, target: Target, mirrored: Sequence[int]) -> tuple[Tensor, Target]:
    """Apply `flip` with probability 1/2."""
    return flip(image, target, mirrored) if torch.rand(()) < 0.5 else (image, target)


def hide_keypoints_outside(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Give keypoints outside the image visibility 0, and those of visibility 0 the place (0, 0)."""
    keypoints = target["keypoints"]
    height, width = keypoints.canvas_size
    x, y = keypoints.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    visibility = target["visibility"] * inside
    shown = keypoints.where(visibility[..., None] > 0, 0.0)
    return image, {**target, "keypoints": tv_tensors.wrap(shown, like=keypoints), "visibility": visibility}


def to_model_targets(target: Target) -> dict[str, Tensor]:
    """Return the target as a torchvision detector takes it, in plain tensors, with the keys that `target` has.

    boxes (N, 4) float32 xyxy, labels (N,) int64, image_id () int64, masks (N, H, W) uint8,
    keypoints (N, K, 3) float32 as x, y, visibility.
    """
    plain = {"image_id": torch.tensor(target["image_id"])}
    for key in ("boxes", "labels", "masks"):
        if key in target:
            plain[key] = target[key].as_subclass(Tensor)
    if "keypoints" in target:
        points = target["keypoints"].as_subclass(Tensor)
        plain["keypoints"] = torch.cat([points, target["visibility"][..., None].to(points.dtype)], dim=-1)
    return plain


def _jitter(mirror: Transform) -> list[Any]:
    size = (JITTER_SIZE, JITTER_SIZE)
    fill = {tv_tensors.Image: _IMAGENET_MEAN, "others": 0}
    return [mirror, v2.ScaleJitter(size), v2.RandomCrop(size, pad_if_needed=True, fill=fill)]


def _values_per_object(sample: tuple[Tensor, Target]) -> list[Tensor]:
    """Return what must be dropped together with a box; v2 drops masks by itself."""
    keys = ("labels", "area", "iscrowd", "keypoints", "visibility")
    return [sample[1][key] for key in keys if key in sample[1]]


_PRESETS: dict[str, Callable[[Transform], list[Any]]] = {
    "none": lambda mirror: [],
    "flip": lambda mirror: [mirror],
    "lsj": _jitter,
    "photometric": lambda mirror: [mirror, v2.RandomPhotometricDistort()],
}
