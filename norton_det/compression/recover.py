"""Restores a compressed model from unlabelled images, the dense model as its teacher, in two phases.

First one part after the other is trained to give the dense part's output, in the order of the data. Its inputs come
from the parts already restored, its targets from the dense model, so that a part also makes up for what those before
it lost. Maps lie on disk (`ActivationFile`); memory holds a batch of images and of maps, whatever the number of
images. Then a detector is trained as a whole to say what the dense one says (`end_to_end`), because the parts cannot
know which of their errors matter.
"""

import copy
import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights
from torchvision.transforms.v2.functional import normalize, resize
from tqdm import tqdm

from norton_det.compression.compress import CompressionReport, PartReport, compress
from norton_det.compression.distill import settle_statistics
from norton_det.compression.end_to_end import ZOOM, Imitation, Length, train_end_to_end
from norton_det.compression.plan import PlanLike
from norton_det.compression.recovery_run import REGION_BATCH_SIZE, REGION_READ_SIZE, Maps, Part, RecoveryRun
from norton_det.compression.refit import refit_block, refit_laterals
from norton_det.compression.residual import take_apart
from norton_det.compression.saliency import Criterion
from norton_det.compression.small_images import SmallImages
from norton_det.files import to_json
from norton_det.models.channels import Block, read_body
from norton_det.models.device import device_of
from norton_det.models.layout import to_channels_last
from norton_det.models.parts import regions
from norton_det.models.persistence import dropped_blocks
from norton_det.models.smaller_images import for_smaller_images

log = logging.getLogger(__name__)
STEPS = 500
"""Gradient steps of the whole detector."""
PART_SHARE = 5
"""A part gets one step for so many of the whole detector's."""
PARTS_TIME = 0.5
"""The share of the minutes that the steps of all parts may take."""
WHOLE = "whole detector"
"""The whole detector's name in the report."""
CROP = 224
"""Pixels a side of the square that is cropped from each resized image for body, neck and RPN."""
PART_IMAGES = 64
"""At most how many images parts are restored on, and BatchNorm's statistics are taken from."""
HELD_BACK = 8
"""One image in so many is only measured on, not trained on."""


def compress_and_recover(
    model: nn.Module,
    plan: PlanLike,
    images: Sequence[Tensor],
    criterion: Criterion = "pabs",
    *,
    rank: int | None = None,
    steps: int = STEPS,
    minutes: float | None = None,
    seed: int = 0,
    share: float = 1.0,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, CompressionReport]:
    """Run `compress`, then `recover` on the images, if there are any, on `device` (None: where the model is).

    A detector is made for images of a `share` of its own size. The report tells of both; the result lies where the
    model does. Raises ValueError as they do, for a share of a classifier's images, and for one that is not learnt.
    """
    if share != 1 and not (len(images) and (steps or minutes)):
        raise ValueError("smaller images have to be learnt: give images, and steps")
    compressed, report = compress(model, plan, criterion, rank)
    if share != 1:
        compressed = for_smaller_images(compressed, share)
    if not len(images):
        return compressed, report
    home = device_of(model)
    restored, parts = recover(
        compressed.to(device or home),
        model,
        images,
        report.kept,
        steps=steps,
        minutes=minutes,
        seed=seed,
        checkpoint=checkpoint,
    )
    return restored.to(home), replace(report, recovery=parts)


def recover(
    compressed: nn.Module,
    dense: nn.Module,
    images: Sequence[Tensor],
    kept: Mapping[str, Sequence[int]] | None = None,
    *,
    steps: int = STEPS,
    minutes: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, tuple[PartReport, ...]]:
    """Return a restored copy of a compressed ResNet or detector, and the errors before and after.

    The parts are the stem, the blocks, and for a detector the neck, the RPN's convolutions or the towers, and the
    heads on regions; then comes the whole detector. Nothing is left worse than it was found, as measured on every
    eighth image, which is held back. A detector that was made `for_smaller_images` learns as a whole to see in them
    what the dense one sees in its own; its parts are restored on the latter.

    Args:
        compressed: what `compress` made of `dense`, on the device to work on; or `dense` for smaller images.
        dense: the teacher; not changed.
        images: float RGB (3, H, W) in 0 to 1, read one at a time, many times: a list, or a sequence that loads them.
        kept: by group of tied channels, the dense model's channels that the compressed one has, as `compress`
            reports them. Where it is None the body and neck are one part, whose targets are the pyramid's levels,
            and a classifier is refused.
        steps: gradient steps of the whole detector, of 4 images each; each part takes a fifth as many. With 0 none
            are taken: what has a closed form is solved, and BatchNorm's statistics are estimated anew.
        minutes: how long all may take, in place of the whole detector's `steps`: the steps of the parts take at most
            half of it, the whole detector what is left.
        seed: decides crops and batches.
        checkpoint: a file that keeps what is finished, so that the same call goes on after it was stopped.

    Raises:
        ValueError: fewer than two images, or a classifier without `kept`.
    """
    if len(images) < 2:
        raise ValueError(f"recovery needs at least two images, got {len(images)}")
    if kept is None and isinstance(compressed, ResNet):
        raise ValueError("recovery of a classifier needs `kept`, the channels that compression kept")
    started = time.monotonic()
    student: Any
    teacher: Any
    student, teacher = (copy.deepcopy(model).to(device_of(compressed)).eval() for model in (compressed, dense))
    for model in (student, teacher):
        to_channels_last(model)
    held = range(0, len(images), HELD_BACK)
    trained = [index for index in range(len(images)) if index % HELD_BACK]
    with tempfile.TemporaryDirectory() as folder:
        key = "" if checkpoint is None else _key(compressed, dense, images, kept)
        size = None if isinstance(student, ResNet) else list(student.transform.min_size)
        setting = {"steps": steps, "minutes": minutes, "seed": seed, "size": size, "content": key}
        part_seconds = math.inf if minutes is None else 60 * minutes * PARTS_TIME / _count_parts(student, kept)
        part_steps = math.ceil(steps / PART_SHARE)
        run = RecoveryRun(student, teacher, part_steps, part_seconds, seed, Path(folder), checkpoint, setting)
        if not run.whole:
            measured = _spread(held, PART_IMAGES // HELD_BACK)
            _restore_parts(run, images, [*measured, *_spread(trained, PART_IMAGES)], len(measured), kept)
        if steps and not isinstance(student, ResNet):
            seconds = None if minutes is None else 60 * minutes - (time.monotonic() - started)
            if seconds is not None and seconds <= 0:
                log.warning("the parts took the %g minutes: the whole detector is not trained further", minutes)
            how = Imitation(student, teacher, _as_seen(teacher, images, Path(folder)), held, trained, seed)
            losses = train_end_to_end(how, Length(steps, seconds), run.whole, run.save_whole)
            run.reports.append(PartReport(WHOLE, *losses))
    if any(part.after < part.before for part in run.reports):
        seen = (images[index] for index in _spread(trained, PART_IMAGES))
        settle_statistics(student, lambda: _see_all(student, seen))
    return student, tuple(run.reports)


def _spread(indices: Sequence[int], count: int) -> Sequence[int]:
    """Return at most so many of the indices, spread evenly over them."""
    return indices[:: math.ceil(len(indices) / count)]


def _as_seen(detector: Any, images: Sequence[Tensor], folder: Path) -> SmallImages:
    """Return the images shrunk to the largest scale at which a training step shows them."""
    transform, most = detector.transform, math.exp(ZOOM)
    return SmallImages(images, most * transform.min_size[-1], most * transform.max_size, folder)


def _see_all(model: Any, images: Iterable[Tensor]) -> None:
    """Pass images through a model, one at a time."""
    for image in images:
        shown = image.to(device_of(model))
        model(_normalised(model, shown)[None] if isinstance(model, ResNet) else [shown])


def _restore_parts(
    run: RecoveryRun,
    images: Sequence[Tensor],
    order: Sequence[int],
    held: int,
    kept: Mapping[str, Sequence[int]] | None,
) -> None:
    """Restore part after part on images in the given order; the first `held` of them are only measured on."""
    student, teacher = run.student, run.teacher
    pixels = run.new_file()
    for index in tqdm(order, desc="read images"):
        pixels.append(_crop(_normalised(teacher, images[index].to(run.device)), run.seed + index))
    maps = Maps([pixels], [pixels], held)
    if kept is None:
        levels = run.pass_on(Part("body and neck", _Backbone(student), _Backbone(teacher)), maps)
    else:
        stages = _restore_body(run, maps, kept)
        if isinstance(student, ResNet):
            return
        refit = partial(refit_laterals, student.backbone.fpn, teacher.backbone.fpn)
        levels = run.pass_on(Part("neck", _Pyramid(student), _Pyramid(teacher), refit=refit), stages)
    for name, ours, theirs in _towers(student, teacher):
        run.restore(Part(name, _OnEachLevel(ours), _OnEachLevel(theirs)), levels)
    for kind, seen in run.pool(images, order, held).items():
        ours, theirs = (regions(model)[kind].head for model in (student, teacher))
        run.restore(
            Part(f"{kind} head", ours, theirs, read_size=REGION_READ_SIZE, batch_size=REGION_BATCH_SIZE), seen
        )


def _count_parts(student: Any, kept: Mapping[str, Sequence[int]] | None) -> int:
    """Return how many parts `_restore_parts` restores."""
    body = 1 + len(read_body(student).blocks)
    if isinstance(student, ResNet):
        return body
    body_and_neck = 1 if kept is None else body + 1
    return body_and_neck + len([*_towers(student, student)]) + len(regions(student))


def _towers(student: Any, teacher: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield what looks at every level behind the neck, before its predictors: the RPN's convolutions, or towers."""
    if hasattr(student, "rpn"):
        yield "rpn", student.rpn.head.conv, teacher.rpn.head.conv
        return
    for kind in ("classification", "regression"):
        ours, theirs = (getattr(model.head, f"{kind}_head").conv for model in (student, teacher))
        yield f"{kind} head", ours, theirs


def _key(
    compressed: nn.Module, dense: nn.Module, images: Sequence[Tensor], kept: Mapping[str, Sequence[int]] | None
) -> str:
    """Return a digest of all that decides a recovery: both networks' tensors, the channels, and the images."""
    channels = sorted((group, list(indices)) for group, indices in (kept or {}).items())
    digest = hashlib.sha256(to_json(channels).encode())

    def add(name: str, tensor: Tensor) -> None:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    for model in (compressed, dense):
        for name, tensor in model.state_dict().items():
            add(name, tensor)
    paths: Sequence[Path] | None = getattr(images, "paths", None)
    for path in paths or ():
        digest.update(path.read_bytes())
    for index in range(len(images) if paths is None else 0):
        add(str(index), images[index])
    return digest.hexdigest()


def _restore_body(run: RecoveryRun, maps: Maps, kept: Mapping[str, Sequence[int]]) -> Maps:
    """Restore stem and blocks; return the outputs of the stages that the neck reads, a classifier's last stage's."""
    body = read_body(run.student)
    student, teacher = (model.get_submodule(body.prefix.removesuffix(".")) for model in (run.student, run.teacher))
    parts = [Part("stem", _stem(student), _stem(teacher), kept[body.group_of("conv1").name])]
    dense_body = read_body(run.teacher)
    dropped = dropped_blocks(run.student)
    theirs: list[list[Block]] = []  # by block of the student; it stands for the dropped ones behind it too
    for block in dense_body.blocks:
        theirs += [] if block.name in dropped else [[]]
        theirs[-1].append(block)
    for block, wanted in zip(body.blocks, theirs, strict=True):
        ours, dense = student.get_submodule(block.name), (teacher.get_submodule(one.name) for one in wanted)
        refit = partial(
            refit_block,
            take_apart(run.student, body, block),
            [take_apart(run.teacher, dense_body, one) for one in wanted],
            kept[block.stage],
        )
        parts.append(Part(block.name, ours, nn.Sequential(*dense), kept[block.stage], refit))
    read = getattr(student, "return_layers", {body.stages[-1]: "0"})
    last_blocks = {body.last_block(stage).name for stage in body.stages if stage in read}
    stages: list[Maps] = []
    for part in parts:
        after = run.pass_on(part, maps)
        if maps not in stages:
            maps.delete()
        maps = after
        if part.name in last_blocks:
            stages.append(maps)
    return Maps(
        [file for stage in stages for file in stage.student],
        [file for stage in stages for file in stage.teacher],
        maps.held,
    )


def _stem(body: nn.Module) -> nn.Module:
    return nn.Sequential(*(body.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")))


class _Pyramid(nn.Module):
    """Computes a feature pyramid's levels from the stages' maps, without the pooled one, which follows from them."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.pyramid = detector.backbone.fpn

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return _levels(self.pyramid({str(index): level for index, level in enumerate(maps)}))


class _Backbone(nn.Module):
    """Computes the levels of the pyramid, without the pooled one, from images."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return _levels(self.backbone(pixels))


def _levels(pyramid: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(level for name, level in pyramid.items() if name != "pool")


class _OnEachLevel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(level) for level in levels)


def _normalised(model: Any, image: Tensor) -> Tensor:
    """Return an image as the model sees it, resized and normalised, (3, H, W); a classifier's is not cropped yet."""
    if not isinstance(model, ResNet):
        tensors: Tensor = model.transform([image])[0].tensors
        return tensors[0]
    preset: Any = ResNet50_Weights.IMAGENET1K_V1
    preprocess = preset.transforms()
    resized = resize(image, preprocess.resize_size, antialias=True)
    normalised: Tensor = normalize(resized, preprocess.mean, preprocess.std)
    return normalised


def _crop(image: Tensor, seed: int) -> Tensor:
    """Crop a square of CROP pixels a side from an image, with zeros where it is smaller, (1, 3, CROP, CROP)."""
    image = F.pad(image, (0, max(0, CROP - image.shape[2]), 0, max(0, CROP - image.shape[1])))
    generator = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(side - CROP + 1, (), generator=generator)) for side in image.shape[1:])
    return image[None, :, top : top + CROP, left : left + CROP]
