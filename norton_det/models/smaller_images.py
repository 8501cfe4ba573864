"""Makes a detector see objects in smaller images as another one sees them in its own, and compares what both see.

Anchors and the sizes by which regions choose their level shrink with the images, so each place of the pyramid stands
for the same piece of the scene, and only the resolution is less. What the networks make of it has to be learnt:
`compression.recover` teaches it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from norton_det.models.settings import read_settings, write_settings

Shape = tuple[int, int]


def size_settings(detector: nn.Module, share: float) -> dict[str, Any]:
    """Return the size settings of a detector for images at a share of its own size; no side is below one pixel."""

    def smaller(*sides: int) -> tuple[int, ...]:
        return tuple(max(1, round(share * side)) for side in sides)

    own = read_settings(detector)
    return {
        "min_size": smaller(own["min_size"][-1]),
        "max_size": smaller(own["max_size"])[0],
        "fixed_size": smaller(*own["fixed_size"]) if own["fixed_size"] else None,
    }


def for_smaller_images(detector: nn.Module, share: float) -> nn.Module:
    """Return a copy of a detector whose images, anchors and levels of regions have a share of its own size.

    Weights stay as they are. The share is met as well as whole pixels allow. Raises ValueError for 0 or less, for
    more than 1, and for a classifier.
    """
    if not 0 < share <= 1:
        raise ValueError(f"images of {share:g} of a detector's own size: expected more than 0 and at most 1")
    own = read_settings(detector)
    if "min_size" not in own:
        raise ValueError("smaller images are for detectors; a classifier takes any size as it is")
    changed = size_settings(detector, share)
    exact = changed["min_size"][0] / own["min_size"][-1]
    for name, setting in own.items():
        if name.endswith("anchor_generator"):
            changed[name] = setting | {"sizes": [[exact * size for size in sizes] for sizes in setting["sizes"]]}
        elif name.endswith("roi_pool"):
            changed[name] = setting | {"canonical_scale": max(1, round(exact * setting["canonical_scale"]))}
    smaller = copy.deepcopy(detector)
    write_settings(smaller, changed)
    return smaller


def share_of_images(detector: Any, other: Any) -> float:
    """Return the size of a detector's images as a share of another's."""
    return float(detector.transform.min_size[-1] / other.transform.min_size[-1])


def shrink_batch(batch: ImageList, share: float) -> ImageList:
    """Return a batch of images at a share of its size; nothing is padded anew."""
    if share == 1:
        return batch
    height, width = (max(1, round(share * side)) for side in batch.tensors.shape[2:])
    tensors = F.interpolate(batch.tensors, (height, width), mode="bilinear", antialias=True)
    sizes = [(max(1, round(share * h)), max(1, round(share * w))) for h, w in batch.image_sizes]
    return ImageList(tensors, sizes)


def at_places(maps: Tensor, shape: Shape, share: float) -> Tensor:
    """Read maps (N, C, H, W) at the places of maps of a shape (height, width) that see images of a share of the size.

    Place i of a map stands for pixel i * stride, so it is place i / share of the larger map, between whose values the
    result is interpolated; the outermost values continue beyond the border.
    """
    if share == 1:
        return maps
    rows, columns = (
        torch.arange(wanted, device=maps.device) / share * 2 / max(side - 1, 1) - 1
        for wanted, side in zip(shape, maps.shape[2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
    return F.grid_sample(maps.float(), grid.expand(len(maps), *grid.shape), padding_mode="border", align_corners=True)


def pyramid_at_places(pyramid: Mapping[str, Tensor], like: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Read each level of a pyramid at the places of another one, by `at_places`."""
    return {name: at_places(level, _shape(like[name]), share) for name, level in pyramid.items()}


def said_at_places(said: Tensor, levels: Sequence[Tensor], like: Sequence[Tensor], share: float) -> Tensor:
    """Read what a dense head says of all anchors, (N, M, K), at the places of another pyramid, by `at_places`.

    The M anchors are those of all places, level after level, row after row, as torchvision orders them.
    """
    if share == 1:
        return said
    places = [level.shape[2] * level.shape[3] for level in levels]
    anchors = said.shape[1] // sum(places)
    read = []
    for values, level, other in zip(said.split([anchors * count for count in places], 1), levels, like, strict=True):
        maps = values.reshape(len(said), *_shape(level), -1).permute(0, 3, 1, 2)
        read.append(at_places(maps, _shape(other), share).permute(0, 2, 3, 1).reshape(len(said), -1, said.shape[2]))
    return torch.cat(read, 1)


def _shape(level: Tensor) -> Shape:
    return level.shape[2], level.shape[3]
