"""torchvision's RoIAlign over the levels of a pyramid, in forms that are faster where they run."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

STRIDES = (4, 8, 16, 32)
"""Of the four levels, in pixels."""


class _FourLevels(MultiScaleRoIAlign):  # type: ignore[misc]
    """What both forms share: the pooler that they stand for, and which region belongs to which level."""

    def __init__(self, pooler: MultiScaleRoIAlign) -> None:
        super().__init__(pooler.featmap_names, pooler.output_size, pooler.sampling_ratio)
        self.level_of = initLevelMapper(2, 5)

    def members(self, boxes: list[Tensor]) -> list[Tensor]:
        """The indices of each level's regions."""
        levels = self.level_of(boxes)
        return [torch.where(levels == level)[0] for level in range(len(STRIDES))]


class GatheredRoIAlign(_FourLevels):
    """For a traced graph of one image: what the levels give is put in order by one gather.

    torchvision scatters it into zeros, for which a traced graph builds two tensors of the whole size a level.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], _: list[tuple[int, int]]) -> Tensor:
        """Pooled features (N, C, h, w) of the boxes (N, 4) of the image."""
        members = self.members(boxes)
        pooled = [
            roi_align(x[name], [boxes[0][chosen]], self.output_size, 1 / stride, self.sampling_ratio)
            for name, stride, chosen in zip(self.featmap_names, STRIDES, members, strict=True)
        ]
        return torch.cat(pooled)[torch.argsort(torch.cat(members))]


class BagRoIAlign(_FourLevels):
    """For torch on a CPU: every bin is a weighted sum of a map's positions, which is what an embedding bag computes.

    That one is vectorised over channels and uses all cores; torchvision's kernel does neither. A bin of s x s
    samples, each between four positions, sums 2s x 2s of them, with weights that are products of one for the row and
    one for the column.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], _: list[tuple[int, int]]) -> Tensor:
        """Pooled features (N, C, h, w), channels_last, of the boxes (N, 4) of all images in their order."""
        everything = torch.cat(boxes)
        image = torch.repeat_interleave(torch.tensor([len(found) for found in boxes]))
        height, width = self.output_size
        channels = x[self.featmap_names[0]].shape[1]
        pooled = everything.new_empty(len(everything), height, width, channels)
        for name, stride, chosen in zip(self.featmap_names, STRIDES, self.members(boxes), strict=True):
            pooled[chosen] = self._pool(x[name], everything[chosen] / stride, image[chosen])
        return pooled.permute(0, 3, 1, 2)

    def _pool(self, maps: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """From maps (B, C, H, W) and boxes in their positions (n, 4): (n, h, w, C)."""
        _, channels, rows, columns = maps.shape
        (height, width), samples = self.output_size, self.sampling_ratio
        row, row_weight = _positions(boxes[:, 1], boxes[:, 3], height, samples, rows)
        column, column_weight = _positions(boxes[:, 0], boxes[:, 2], width, samples, columns)
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


def replace_poolers(detector: GeneralizedRCNN, form: type[GatheredRoIAlign] | type[BagRoIAlign]) -> None:
    """Let a detector's heads pool in another form, in place."""
    heads = detector.roi_heads
    for name in ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool"):
        if getattr(heads, name) is not None:
            setattr(heads, name, form(getattr(heads, name)))


def _positions(start: Tensor, end: Tensor, bins: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Along one side: the positions between which each bin's samples lie, and their weights, both (n, bins, 2s).

    As in torchvision without `aligned`: a side is at least 1 long, a sample beyond -1 or the length counts nothing.
    """
    step = (end - start).clamp_min(1)[:, None] / (bins * samples)
    places = start[:, None] + step * (torch.arange(bins * samples) + 0.5)
    outside = (places < -1) | (places > length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    share = places - low
    weights = torch.stack([1 - share, share], dim=-1).masked_fill(outside[..., None], 0) / samples
    positions = torch.stack([low, (low + 1).clamp_max(length - 1)], dim=-1).long()
    return positions.view(len(start), bins, 2 * samples), weights.view(len(start), bins, 2 * samples)
