"""Compresses torchvision and Detectron2 detectors on ResNets by NORTON: filter decomposition and pruning."""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # before torch: threads wait for each other asleep
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # after microseconds, not milliseconds

if TYPE_CHECKING:
    from norton_det.api import (
        agreement,
        build_detector,
        compress,
        count_detector,
        detect_stream,
        detector_latency,
        export,
        load_detector,
        load_resnet,
        optimize,
        parity,
        recover,
        save,
        search_plan,
    )
    from norton_det.config import load_config
    from norton_det.data.catalog import drawn_images, open_images
    from norton_det.ops.cp import decompose_filters

_HOMES = {
    "load_config": "norton_det.config",
    "drawn_images": "norton_det.data.catalog",
    "open_images": "norton_det.data.catalog",
    "decompose_filters": "norton_det.ops.cp",
}
"""Where the functions lie that `norton_det.api` does not have, which stands below the configuration."""
__version__ = version("norton_det")
__all__ = [
    "agreement",
    "build_detector",
    "compress",
    "count_detector",
    "decompose_filters",
    "detect_stream",
    "detector_latency",
    "drawn_images",
    "export",
    "load_config",
    "load_detector",
    "load_resnet",
    "open_images",
    "optimize",
    "parity",
    "recover",
    "save",
    "search_plan",
]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for: torch takes seconds, which `--help` need not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "norton_det.api")), name)


def __dir__() -> list[str]:
    """Return the names that are here, public functions that were not asked for yet too."""
    return [*globals(), *__all__]
