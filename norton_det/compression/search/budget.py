"""Defines what a compressed network may cost, and measures what a network of any plan does cost."""

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from norton_det.analysis.complexity import count, count_detector, total
from norton_det.compression.compress import apply_structure, check_dense
from norton_det.compression.plan import CompressionPlan
from norton_det.compression.search.prices import (
    Price,
    Site,
    StaticPart,
    counted,
    find_sites,
    static_milliseconds,
    timed,
)
from norton_det.models.device import device_of
from norton_det.models.initial import initialise
from norton_det.models.norms import unfreeze_batch_norms
from norton_det.models.parts import PARTS, part_layers

BudgetKind = Literal["macs", "parameters", "milliseconds"]
LEAST_SIZE = 32
"""How many pixels a side an image must have, for below them a ResNet has nothing left to look at."""


@dataclass(frozen=True)
class Budget:
    """A budget: `macs` and `parameters` are shares (0, 1] of the dense network's, `milliseconds` those of one image.

    `size`: pixels (H, W) of the image as it enters the body; None: 224x224 for a classifier, 800x800 for a detector.
    Raises ValueError for an unknown kind or an amount out of range.
    """

    kind: BudgetKind
    amount: float
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(BudgetKind):
            raise ValueError(f"budget {self.kind!r} is not one of {', '.join(get_args(BudgetKind))}")
        if not 0 < self.amount < math.inf or (self.is_share and self.amount > 1):
            expected = "a share above 0 and up to 1" if self.is_share else "a number above 0"
            raise ValueError(f"budget {self}: expected {expected}")
        if self.size is not None and min(self.size) < LEAST_SIZE:
            raise ValueError(f"budget {self}: images have at least {LEAST_SIZE} pixels a side, got {self.size}")

    @classmethod
    def parse(cls, text: str, size: tuple[int, int] | None = None) -> "Budget":
        """Read a budget from `kind=amount`, such as `macs=0.5`. Raises ValueError for anything else.

        Examples:
            >>> Budget.parse("macs=0.5").is_share
            True
        """
        kind, _, amount = text.partition("=")
        if kind not in get_args(BudgetKind) or not _is_number(amount):
            expected = " or ".join(f"{kind}=NUMBER" for kind in get_args(BudgetKind))
            raise ValueError(f"budget {text!r}: expected {expected}")
        return cls(kind, float(amount), size)  # type: ignore[arg-type]

    @property
    def is_share(self) -> bool:
        """Tell whether the amount is a share of the dense network's."""
        return self.kind != "milliseconds"

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Scope:
    """Says what a budget covers: a ResNet (a classifier or a detector's body), or a whole detector.

    Raises ValueError for another model, or one that is compressed already.
    """

    def __init__(self, model: nn.Module, whole_detector: bool, size: tuple[int, int] | None) -> None:
        self.body = check_dense(model)
        is_detector = bool(self.body.prefix)
        if whole_detector and not is_detector:
            raise ValueError("the whole detector is asked for, but the weights are a classifier's")
        self.whole_detector = whole_detector
        self.size = size or ((800, 800) if is_detector else (224, 224))
        self.device = device_of(model)
        self._dense = copy.deepcopy(model).eval()
        unfreeze_batch_norms(self._dense)
        self._dense.to("meta")

    def network(self, plan: CompressionPlan) -> nn.Module:
        """Build the model's network under a plan, with trainable BatchNorm, on the meta device."""
        return apply_structure(copy.deepcopy(self._dense), plan)

    def cost(self, plan: CompressionPlan, kind: BudgetKind) -> float:
        """Count MACs or parameters as `analysis.complexity` does, or measure milliseconds with random weights."""
        network = self.network(plan)
        if kind == "milliseconds":
            return static_milliseconds(self._static(initialise(network)), self.size, self.device)
        if self.whole_detector:
            counts = total(count_detector(network, *self.size))
        else:
            resnet = network.get_submodule(self.body.prefix.removesuffix("."))
            counts = count(resnet, torch.zeros(1, 3, *self.size))[""]
        return counts.macs if kind == "macs" else counts.parameters

    def price(self, kind: BudgetKind) -> Price:
        """Return the function that tells the cost of a single layer, in the same unit."""
        return timed(self.device) if kind == "milliseconds" else counted(kind)

    def sites(self) -> dict[str, Site]:
        """Find every layer in this scope that a plan may change, by its name in the model."""
        normed = {conv for group in self.body.groups.values() for conv, _ in group.producers}
        return find_sites(self._static(self._dense), normed, self.size)

    def layers_of_parts(self) -> dict[str, list[str]]:
        """Return the names of the layers of each part in this scope that a plan may factorise."""
        found = {part: part_layers(self._dense, part) for part in PARTS if self.whole_detector}
        return {part: layers for part, layers in found.items() if layers}

    def _static(self, network: nn.Module) -> StaticPart:
        return StaticPart(network, self.body.prefix, self.whole_detector)
