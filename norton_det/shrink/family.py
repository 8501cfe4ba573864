"""Finds a family of plans, from the smallest possible to almost none: each is the best one for its MACs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from norton_det.compression.plan import CompressionPlan
from norton_det.compression.search.body_sensitivities import Sensitivities
from norton_det.compression.search.budget import Budget
from norton_det.compression.search.plan_search import best_plan, measure_sensitivities, smallest_plan
from norton_det.models.channels import read_body
from norton_det.shrink.levers import DENSE
from norton_det.shrink.memory import Memory

PLANS = 6


@dataclass(frozen=True)
class Family:
    """Holds plans by name, the smallest first and the one that changes nothing last, and their predicted errors."""

    plans: Mapping[str, CompressionPlan]
    errors: Mapping[str, float]


def find_smallest(memory: Memory, dense: nn.Module, photo: Tensor) -> tuple[CompressionPlan, float]:
    """Find the plan with the fewest MACs, and its share of the dense detector's MACs on a photo."""
    memory.expect(1)

    def search() -> dict[str, Any]:
        plan, share = smallest_plan(dense, seen_size(dense, photo))
        return {"plan": plan.to_dict(), "share": share}

    found = memory.recall("the smallest plan", search)
    return CompressionPlan.from_dict(found["plan"], read_body(dense)), found["share"]


def find_family(
    memory: Memory, dense: nn.Module, photos: Sequence[Tensor], least: float, seed: int, count: int = PLANS
) -> Family:
    """Find the plans for `count` budgets of MACs, from the share `least` on, evenly spaced by their logarithm.

    Sensitivities are measured on the photos.
    """
    memory.expect(1)
    size = seen_size(dense, photos[0])

    def search() -> dict[str, Any]:
        sensitivities = measure_sensitivities(dense, photos, whole_detector=True, seed=seed)
        shares = [least ** (1 - number / count) for number in range(count)]
        return {f"{share:.0%}": _found(dense, sensitivities, share, size) for share in shares}

    found = memory.recall(f"{count} plans", search)
    body = read_body(dense)
    plans = {name: CompressionPlan.from_dict(told["plan"], body) for name, told in found.items()}
    errors = {name: told["error"] for name, told in found.items()}
    return Family({**plans, DENSE: CompressionPlan()}, {**errors, DENSE: 0.0})


def _found(dense: nn.Module, sensitivities: Sensitivities, share: float, size: tuple[int, int]) -> dict[str, Any]:
    plan, report = best_plan(dense, sensitivities, Budget("macs", share, size))
    return {"plan": plan.to_dict(), "error": report.predicted_error}


def seen_size(detector: Any, photo: Tensor) -> tuple[int, int]:
    """Return the pixels (H, W) of a photo as it enters a detector's body."""
    height, width = detector.transform([photo])[0].tensors.shape[2:]
    return height, width
