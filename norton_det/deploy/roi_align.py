"""Computes torchvision's RoIAlign over the levels of a pyramid, in a form for each runtime that is faster there."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from norton_det.models.parts import regions
from norton_det.models.variants import LevelRoIAlign


class _SameRoIAlign(LevelRoIAlign):
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


class GatheredRoIAlign(_SameRoIAlign):
    """A RoIAlign for graphs of any number of regions: one gather puts the levels' results in order.

    torchvision scatters them into zeros, for which a traced graph builds two tensors of full size for each level.
    """

    def forward(  # type: ignore[override]
        self, x: dict[str, Tensor], boxes: Tensor, images: Tensor, frame: tuple[int, int]
    ) -> Tensor:
        """Return the pooled features (N, C, h, w) of boxes (N, 4) in the images of these numbers (N,); `frame` is the
        height and width of the largest image."""
        levels = self.levels(x, [boxes], [frame])
        regions = torch.cat([images[:, None].to(boxes), boxes], dim=1)
        pooled = [self.pool(level.map, level.scale, regions[level.members]) for level in levels]
        return torch.cat(pooled)[torch.argsort(torch.cat([level.members for level in levels]))]


class PackedRoIAlign(_SameRoIAlign):
    """A RoIAlign for graphs of constant shapes: the levels lie one below the other in one map, which is pooled once.

    Each level is padded to the width of the widest, and gets GUARD more rows and columns that repeat its last ones;
    for an aligned pooler also one that repeats its first. Samples that torchvision clamps to a level's edge are read
    there.
    """

    GUARD = 2

    def forward(  # type: ignore[override]
        self, x: dict[str, Tensor], boxes: Tensor, images: Tensor, frame: tuple[int, int]
    ) -> Tensor:
        """Pool as `GatheredRoIAlign` does; no box may reach beyond its image."""
        maps, scales, level_of = self.assigned(x, [boxes], [frame])
        before = int(self.aligned)
        guarded = [F.pad(level, (before, self.GUARD) * 2, mode="replicate") for level in maps]
        width = max(level.shape[3] for level in guarded)
        packed = torch.cat([F.pad(level, (0, width - level.shape[3])) for level in guarded], dim=2)
        starts = before + torch.tensor([0, *(level.shape[2] for level in guarded[:-1])]).cumsum(0)[level_of]
        boxes = boxes * torch.tensor(scales)[level_of][:, None]
        moved = boxes + torch.stack([torch.full_like(starts, before), starts], dim=1).repeat(1, 2).to(boxes)
        regions = torch.cat([images[:, None].to(boxes), moved], dim=1)
        pooled = self.pool(packed, 1.0, regions)
        if self.aligned:
            return pooled
        sides = torch.tensor([[level.shape[2], level.shape[3]] for level in maps])[level_of]
        rows = self._inside(boxes[:, 1], boxes[:, 3], sides[:, 0], self.output_size[0])
        columns = self._inside(boxes[:, 0], boxes[:, 2], sides[:, 1], self.output_size[1])
        inside: Tensor = pooled * (rows[:, :, None] * columns[:, None])[:, None]
        return inside

    def _inside(self, start: Tensor, end: Tensor, length: Tensor, bins: int) -> Tensor:
        """Compute the share of each bin's samples that lie on the level along one side, (N, bins).

        Samples beyond it count as zero. They occur because a pooler that is not aligned makes regions at least 1
        long, also at a level's end.
        """
        samples = max(self.sampling_ratio, 1)
        places = _samples(start, (end - start).clamp_min(1), bins * samples)
        inside: Tensor = (places <= length[:, None]).to(start).unflatten(1, (bins, samples))
        return inside.mean(dim=2)


class BagRoIAlign(_SameRoIAlign):
    """A RoIAlign for torch on a CPU: an embedding bag computes every bin as a weighted sum of a map's positions.

    An embedding bag is vectorised over channels and uses all cores; torchvision's kernel does neither. A bin of s x s
    samples, each between four positions, sums 2s x 2s positions; each weight is the product of one for the row and
    one for the column. If s depends on the region (a sampling ratio below 1), torchvision's kernel runs.
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
        table = maps.permute(0, 2, 3, 1).reshape(-1, channels).float()
        bags = F.embedding_bag(
            positions.reshape(-1, size), table, mode="sum", per_sample_weights=weights.reshape(-1, size)
        )
        return bags.view(len(boxes), height, width, channels)


def pool_by_bags(detector: nn.Module) -> None:
    """Let a detector's heads pool by `BagRoIAlign`, in place; a one-stage detector has none and stays as it is."""
    heads: Any = getattr(detector, "roi_heads", None)
    for kind, region in regions(detector).items():
        setattr(heads, f"{kind}_roi_pool", BagRoIAlign(region.pooler))


def _positions(start: Tensor, side: Tensor, bins: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Compute along one side the positions between which each bin's samples lie, and their weights, (n, bins, 2s).

    As in torchvision a sample below -1 or beyond the length counts as zero.
    """
    places = _samples(start, side, bins * samples)
    outside = (places < -1) | (places > length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    share = places - low
    weights = torch.stack([1 - share, share], dim=-1).masked_fill(outside[..., None], 0) / samples
    positions = torch.stack([low, (low + 1).clamp_max(length - 1)], dim=-1).long()
    return positions.view(len(start), bins, 2 * samples), weights.view(len(start), bins, 2 * samples)


def _samples(start: Tensor, side: Tensor, count: int) -> Tensor:
    """Compute the places of `count` samples of each region along one side, (n, count)."""
    step = side[:, None] / count
    return start[:, None] + step * (torch.arange(count) + 0.5)
