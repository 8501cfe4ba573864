"""Computes torchvision's RoIAlign over the levels of a pyramid, in a form for each kind of graph."""

import torch
import torch.nn.functional as F
from torch import Tensor

from norton_det.models.bags import SameRoIAlign, samples_along


class GroupedRoIAlign(SameRoIAlign):
    """A RoIAlign for graphs of any number of regions, whose results stay grouped by level.

    torchvision scatters them into zeros, for which a traced graph builds two tensors of full size for each level.
    What the heads make of them is small, and can be put in order for little.
    """

    def forward(  # type: ignore[override]
        self, x: dict[str, Tensor], boxes: Tensor, images: Tensor, frame: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Pool the features of boxes (N, 4) in the images of these numbers (N,); `frame` is the height and width of
        the largest image.

        Returns the features (N, C, h, w), and for each box the place of its own among them (N,), or None if they are
        in order.
        """
        levels = self.levels(x, [boxes], [frame])
        regions = torch.cat([images[:, None].to(boxes), boxes], dim=1)
        pooled = [self.pool(level.map, level.scale, regions[level.members]) for level in levels]
        return torch.cat(pooled), torch.argsort(torch.cat([level.members for level in levels]))


class PackedRoIAlign(SameRoIAlign):
    """A RoIAlign for graphs of constant shapes: the levels lie one below the other in one map, which is pooled once.

    Each level is padded to the width of the widest, and gets GUARD more rows and columns that repeat its last ones;
    for an aligned pooler also one that repeats its first. Samples that torchvision clamps to a level's edge are read
    there.
    """

    GUARD = 2

    def forward(  # type: ignore[override]
        self, x: dict[str, Tensor], boxes: Tensor, images: Tensor, frame: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Pool as `GroupedRoIAlign` does, in order; no box may reach beyond its image."""
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
            return pooled, None
        sides = torch.tensor([[level.shape[2], level.shape[3]] for level in maps])[level_of]
        rows = self._inside(boxes[:, 1], boxes[:, 3], sides[:, 0], self.output_size[0])
        columns = self._inside(boxes[:, 0], boxes[:, 2], sides[:, 1], self.output_size[1])
        return pooled * (rows[:, :, None] * columns[:, None])[:, None], None

    def _inside(self, start: Tensor, end: Tensor, length: Tensor, bins: int) -> Tensor:
        """Compute the share of each bin's samples that lie on the level along one side, (N, bins).

        Samples beyond it count as zero. They occur because a pooler that is not aligned makes regions at least 1
        long, also at a level's end.
        """
        samples = max(self.sampling_ratio, 1)
        places = samples_along(start, (end - start).clamp_min(1), bins * samples)
        inside: Tensor = (places <= length[:, None]).to(start).unflatten(1, (bins, samples))
        return inside.mean(dim=2)
