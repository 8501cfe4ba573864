"""Lists what a plan search may choose from: ranks and pruning rates, by block, stage and part."""

from itertools import product

from norton_det.models.channels import Block, Body
from norton_det.models.parts import LINEAR_PART, PARTS

RANKS = (None, 1, 2, 3, 4)
"""CP ranks of a convolution with a kernel of more than one pixel; None: it stays dense."""
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""The pruning rates that are tried."""
PART_RANKS: dict[str, tuple[int | None, ...]] = {
    part: (None, 64, 128, 256, 512) if part == LINEAR_PART else RANKS for part in PARTS
}
"""The ranks that the layers of each part may get; None: they stay dense."""

Option = tuple[int | None, float]
"""The rank of a block's spatial convolutions, and the pruning rate of its inner channels."""
UNCHANGED: Option = (None, 0.0)
DROPPED: Option = (None, 1.0)
"""The option to leave a block out, which every block but the first of a stage has."""


def block_options(body: Body, block: Block) -> tuple[Option, ...]:
    """List what a block may become, UNCHANGED first, and alone where its convolutions are grouped."""
    if any(body.groups[group].fixed for group in block.inner):
        return (UNCHANGED,)
    last = () if block.is_first else (DROPPED,)
    return (*product(RANKS if block.spatial else (None,), RATES), *last)


def pruned_stages(body: Body) -> tuple[str, ...]:
    """Name the stages whose outputs may be pruned: all but the last, which stays whole as in the paper's plans."""
    return tuple(stage for stage in body.stages[:-1] if not body.groups[stage].fixed)


def input_group(body: Body, block: Block) -> str:
    """Name the group that a block reads; a BasicBlock behind the stem reads the group that it gives too."""
    name = body.prefix + block.convs[0]
    return next(group.name for group in body.groups.values() if name in group.readers)
