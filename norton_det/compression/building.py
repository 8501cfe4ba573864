"""Networks of any structure and plan with random weights."""

from typing import Any

from norton_det.compression.compress import apply_structure
from norton_det.compression.plan import PlanLike, load_plan
from norton_det.models.categories import categories_of
from norton_det.models.channels import read_body
from norton_det.models.initial import initialise
from norton_det.models.slicing import scale_body
from norton_det.models.structure import Structure, template


def build_network(structure: Structure, plan: PlanLike | None = None, width: float = 1.0) -> Any:
    """Build a network with random weights and trainable BatchNorm, compressed by a plan where there is one.

    `width` multiplies the channels of the body. A detector has `.categories` and `.category_ids`. Raises ValueError
    for a plan or a width that does not fit.
    """
    network: Any = scale_body(template(structure), width)
    if plan is not None:
        apply_structure(network, load_plan(plan, read_body(network)))
    initialise(network)
    if structure.kind is not None:
        network.categories, network.category_ids = categories_of(network)
    return network
