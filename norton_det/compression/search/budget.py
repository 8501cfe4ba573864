"""What a compressed network may cost, and what a network of any plan does cost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.analysis.complexity import Count, count, count_detector, total
from norton_det.compression.compress import body_prefix
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
from norton_det.models.detectors import BODY, LATERALS, PARTS, DetectorSpec, build_from_spec, part_layers, settings_of
from norton_det.models.resnet import GROUPS, ResNetSpec, build_resnet50

BudgetKind = Literal["macs", "parameters", "milliseconds"]
LEAST_SIZE = 32
"""Pixels a side below which a ResNet-50 has nothing left to look at."""


@dataclass(frozen=True)
class Budget:
    """`macs` and `parameters` are shares, above 0 up to 1, of the dense network's; `milliseconds` are one image's.

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
        """From `kind=amount`, such as `macs=0.5`. Raises ValueError for anything else.

        Examples:
            >>> Budget.parse("macs=0.5").is_share
            True
        """
        kind, _, amount = text.partition("=")
        try:
            return cls(kind, float(amount), size)  # type: ignore[arg-type]
        except ValueError as error:
            if kind in get_args(BudgetKind) and "budget" in str(error):
                raise
            expected = " or ".join(f"{kind}=NUMBER" for kind in get_args(BudgetKind))
            raise ValueError(f"budget {text!r}: expected {expected}") from None

    @property
    def is_share(self) -> bool:
        """Whether the amount is a share of the dense network's."""
        return self.kind != "milliseconds"

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"


class Scope:
    """What a budget covers: a ResNet-50 (a classifier or a detector's body), or a whole detector.

    Raises ValueError for another model, or one that is compressed already.
    """

    def __init__(self, model: nn.Module, whole_detector: bool, size: tuple[int, int] | None) -> None:
        prefix = body_prefix(model)
        is_detector = isinstance(model, GeneralizedRCNN)
        if whole_detector and not is_detector:
            raise ValueError("the whole detector is asked for, but the weights are a classifier's")
        self.whole_detector = whole_detector
        self.size = size or ((800, 800) if is_detector else (224, 224))
        self.device = next(model.parameters()).device
        self.prefix = prefix if whole_detector else ""
        state = model.state_dict()
        self._detector: DetectorSpec | None = None
        if is_detector:
            self._detector = DetectorSpec.from_state_dict(state, settings_of(model))
            if whole_detector and self._detector.part_ranks:
                raise ValueError(f"already factorised: {', '.join(self._detector.part_ranks)}")
            self.body = self._detector.body
        else:
            self.body = ResNetSpec.from_state_dict(state)
            self._classes = len(state["fc.bias"])

    def network(self, plan: CompressionPlan) -> Any:
        """The network of this scope under a plan, with random weights and trainable BatchNorm."""
        if self._detector is None:
            return build_resnet50(plan.apply(self.body), self._classes)
        spec = replace(
            self._detector, body=plan.apply(self.body), part_ranks=plan.parts if self.whole_detector else {}
        )
        detector = build_from_spec(spec)
        return detector if self.whole_detector else detector.backbone.body

    def cost(self, plan: CompressionPlan, kind: BudgetKind) -> float:
        """MACs or parameters as `analysis.complexity` counts them, or measured milliseconds."""
        network = self.network(plan)
        if kind == "milliseconds":
            return static_milliseconds(StaticPart(network, self.whole_detector), self.size, self.device)
        counts: Count = (
            total(count_detector(network, *self.size))
            if self.whole_detector
            else count(network, torch.zeros(1, 3, *self.size))[""]
        )
        return counts.macs if kind == "macs" else counts.parameters

    def price(self, kind: BudgetKind) -> Price:
        """What a single layer costs, in the same unit."""
        return timed(self.device) if kind == "milliseconds" else counted(kind)

    def sites(self) -> dict[str, Site]:
        """Every layer that a plan changes, by its name in a model of this scope without the body's prefix."""
        network = self.network(CompressionPlan())
        normed = [self.prefix + conv for group in GROUPS.values() for conv, _ in group.producers]
        others: Iterable[str] = ()
        if self.whole_detector:
            others = [*LATERALS, *(layer for part in PARTS for layer in part_layers(network, part))]
        found = find_sites(StaticPart(network, self.whole_detector), [*normed, *others], normed, self.size)
        return {name.removeprefix(BODY): site for name, site in found.items()}
