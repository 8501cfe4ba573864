"""Pools regions on a CPU by an embedding bag: torchvision's RoIAlign, several times as fast."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from norton_det.models.device import device_of
from norton_det.models.parts import regions
from norton_det.models.variants import LevelRoIAlign


class SameRoIAlign(LevelRoIAlign):
    """Holds what all forms share: a pooler's settings."""

    def __init__(self, pooler: MultiScaleRoIAlign) -> None:
        super().__init__(
            pooler.featmap_names,
            pooler.output_size,
            pooler.sampling_ratio,
            canonical_scale=pooler.canonical_scale,
            canonical_level=pooler.canonical_level,
            aligned=getattr(pooler, "aligned", False),
        )
        self.scales, self.map_levels = pooler.scales, pooler.map_levels


class BagRoIAlign(SameRoIAlign):
    """A RoIAlign for torch on a CPU: an embedding bag computes every bin as a weighted sum of a map's positions.

    An embedding bag is vectorised over channels and uses all cores, backwards too; torchvision's kernel does neither.
    A bin of s x s samples, each between four positions, sums 2s x 2s positions; each weight is the product of one for
    the row and one for the column. If s depends on the region (a sampling ratio below 1), torchvision's kernel runs.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return the pooled features (N, C, h, w), channels_last, of all images' boxes (N, 4) in their order."""
        if self.sampling_ratio < 1:
            adaptive: Tensor = super().forward(x, boxes, image_shapes)
            return adaptive
        everything = torch.cat(boxes)
        image = torch.repeat_interleave(torch.tensor([len(found) for found in boxes]))
        height, width = self.output_size
        levels = self.levels(x, boxes, image_shapes)
        pooled = everything.new_zeros(len(everything), height, width, levels[0].map.shape[1])
        for level in levels:
            chosen = level.members
            pooled[chosen] = self._bags(level.map, everything[chosen] * level.scale, image[chosen])
        return pooled.permute(0, 3, 1, 2)

    def _bags(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """Compute the bins (n, h, w, C) of boxes (n, 4), given in positions of the maps (B, C, H, W)."""
        _, channels, rows, columns = maps.shape
        (height, width), samples = self.output_size, self.sampling_ratio
        sides = boxes[:, 2:] - boxes[:, :2]
        if self.aligned:
            boxes = boxes - 0.5
        else:
            sides = sides.clamp_min(1)
        row, row_weight = _positions(boxes[:, 1], sides[:, 1], height, samples, rows)
        column, column_weight = _positions(boxes[:, 0], sides[:, 0], width, samples, columns)
        row = row + image[:, None, None] * rows
        # From (n, h, 2s) and (n, w, 2s) to (n, h, w, 2s, 2s): bins, and the positions of each.
        positions = row[:, :, None, :, None] * columns + column[:, None, :, None, :]
        weights = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        size = (2 * samples) ** 2
        table = maps.permute(0, 2, 3, 1).reshape(-1, channels).to(weights)
        bags = F.embedding_bag(
            positions.reshape(-1, size), table, mode="sum", per_sample_weights=weights.reshape(-1, size)
        )
        return bags.view(len(boxes), height, width, channels)


def pool_by_bags(detector: nn.Module) -> None:
    """Let a detector's heads pool by `BagRoIAlign`, in place; a one-stage detector has none and stays as it is."""
    _set_poolers(detector, {kind: BagRoIAlign(region.pooler) for kind, region in regions(detector).items()})


@contextmanager
def pooling_by_bags(detector: nn.Module) -> Iterator[None]:
    """Let a detector on a CPU pool by `BagRoIAlign` inside the `with` block; on a GPU torchvision's kernel stays.

    It stays for keypoints too, since torchvision's loss wants their maps contiguous.
    """
    is_cpu = device_of(detector).type == "cpu"
    poolers = {kind: region.pooler for kind, region in regions(detector).items() if is_cpu and kind != "keypoint"}
    bags = {kind: BagRoIAlign(pooler) for kind, pooler in poolers.items()}
    _set_poolers(detector, bags)
    try:
        yield
    finally:
        for kind, bag in bags.items():  # a pooler's first call decides its scales
            poolers[kind].scales, poolers[kind].map_levels = bag.scales, bag.map_levels
        _set_poolers(detector, poolers)


def _set_poolers(detector: nn.Module, poolers: Mapping[str, nn.Module]) -> None:
    """Put poolers into a detector's heads, by kind of region."""
    for kind, pooler in poolers.items():
        setattr(detector.roi_heads, f"{kind}_roi_pool", pooler)


def _positions(start: Tensor, side: Tensor, bins: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Compute along one side the positions between which each bin's samples lie, and their weights, (n, bins, 2s).

    As in torchvision a sample below -1 or beyond the length counts as zero.
    """
    places = samples_along(start, side, bins * samples)
    outside = (places < -1) | (places > length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    share = places - low
    weights = torch.stack([1 - share, share], dim=-1).masked_fill(outside[..., None], 0) / samples
    positions = torch.stack([low, (low + 1).clamp_max(length - 1)], dim=-1).long()
    return positions.view(len(start), bins, 2 * samples), weights.view(len(start), bins, 2 * samples)


def samples_along(start: Tensor, side: Tensor, count: int) -> Tensor:
    """Compute the places of `count` samples of each region along one side, (n, count)."""
    step = side[:, None] / count
    return start[:, None] + step * (torch.arange(count) + 0.5)
