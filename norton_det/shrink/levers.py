"""Defines the levers that can be chosen (a plan, the size of images, the number of proposals, the precision), and
sets them."""

import copy
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from torch import nn

from norton_det.deploy.optimize import SUPPORTED, Runtime
from norton_det.deploy.runtimes import Precision
from norton_det.deploy.treatments import runs_on_cpu
from norton_det.models.settings import read_settings, write_settings
from norton_det.models.smaller_images import size_settings

DENSE = "dense"
"""The name of the plan that changes nothing."""
SIZES = (1.0, 0.85, 0.7, 0.6, 0.5)
"""Sizes of images, in shares of the detector's own."""
PROPOSALS = (1.0, 0.5, 0.3, 0.15)
"""Numbers of proposals of an R-CNN, in shares of its own."""
LEAST_PROPOSALS = 10
RUNTIMES: dict[str, Runtime] = {".xml": "openvino", ".onnx": "onnxruntime", ".pth": "torch"}
"""The runtime of a file, by its ending."""


@dataclass(frozen=True, order=True)
class Choice:
    """Describes one detector that could be made.

    Attributes:
        plan: a plan's name, or DENSE.
        size: the size of images, as a share of the detector's own.
        proposals: the most regions that an R-CNN looks at; 0 for a one-stage detector.
        precision: the precision in which the file is run.
        learns: whether the detector learns images of that size, or is shown them as it is.
    """

    plan: str
    size: float
    proposals: int
    precision: Precision
    learns: bool = False

    @property
    def learnt(self) -> "Learnt":
        """Return what a detector has to learn for this choice."""
        return Learnt(self.plan, self.size if self.learns else 1.0)

    def __str__(self) -> str:
        proposals = f", {self.proposals} proposals" if self.proposals else ""
        size = f"{'learnt ' if self.learns else ''}images at {100 * self.size:.3g}%"
        return f"{_plan_told(self.plan)}, {size}{proposals}, {self.precision}"


@dataclass(frozen=True, order=True)
class Learnt:
    """Names a detector that was restored: a plan's name, and the size of images as a share of the detector's own."""

    plan: str
    size: float

    def __str__(self) -> str:
        return f"{_plan_told(self.plan)}, images at {100 * self.size:.3g}%"


def _plan_told(plan: str) -> str:
    return "no plan" if plan == DENSE else f"plan {plan}"


NOTHING = Learnt(DENSE, 1.0)
"""The dense detector itself, which has nothing to learn."""


def all_choices(
    plans: Iterable[str], sizes: Iterable[float], proposals: Iterable[int], precisions: Iterable[Precision]
) -> list[Choice]:
    """List all combinations of what each lever can be set to; smaller images may be learnt or not."""
    shown = [(size, False) for size in sizes]
    learnt = [(size, True) for size, _ in shown if size < 1]
    every = product(plans, [*shown, *learnt], proposals, precisions)
    return [Choice(plan, size, count, precision, learns) for plan, (size, learns), count, precision in every]


def find_runtime(path: Path) -> Runtime:
    """Return the runtime of a file by its ending. Raises ValueError for an unknown one, or a missing runtime."""
    if path.suffix not in RUNTIMES:
        endings = ", ".join(f"{suffix} ({runtime})" for suffix, runtime in RUNTIMES.items())
        raise ValueError(f"--output {path}: expected a name that ends in {endings}")
    runtime = RUNTIMES[path.suffix]
    if not importlib.util.find_spec(runtime):
        here = ", ".join(suffix for suffix, other in RUNTIMES.items() if importlib.util.find_spec(other))
        raise ValueError(
            f"--output {path}: {runtime} is not installed (pip install norton_det[deploy]); here: {here}"
        )
    return runtime


def usable_precisions(runtime: Runtime) -> tuple[Precision, ...]:
    """Return the precisions that a runtime, the installed packages and this machine's CPU allow."""
    if runtime == "torch":  # a file of weights does not say another one
        return ("float32",)
    return tuple(precision for precision in SUPPORTED[runtime] if runs_on_cpu(runtime, precision))


def what_is_missing(runtime: Runtime) -> str:
    """Return a line that says what missing packages, or another ending, would add; empty if nothing would."""
    if runtime != "openvino":
        return "a file for OpenVINO (--output NAME.xml) is faster on most CPUs, and knows bfloat16 and int8"
    return "" if "int8" in usable_precisions(runtime) else "nncf would add int8: pip install norton_det[deploy]"


def proposal_counts(detector: nn.Module) -> tuple[int, ...]:
    """Return the numbers of proposals to try, a detector's own first; (0,) if it makes none."""
    own = read_settings(detector).get("rpn_post_nms_top_n_test")
    if own is None:
        return (0,)
    return tuple(dict.fromkeys(min(own, max(LEAST_PROPOSALS, round(own * share))) for share in PROPOSALS))


def set_levers(detector: nn.Module, of: nn.Module, size: float, proposals: int) -> nn.Module:
    """Return a copy of a detector with so many proposals, for images at a share of the size of the detector `of`."""
    changed = copy.deepcopy(detector)
    found = {"rpn_post_nms_top_n_test": proposals} if proposals else {}
    write_settings(changed, size_settings(of, size) | found)
    return changed
