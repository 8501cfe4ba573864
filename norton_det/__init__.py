"""NORTON for detectors: filter decomposition and pruning of detectors on ResNets."""

from importlib.metadata import version

from norton_det.api import build_detector, compress, load_detector, load_resnet, save
from norton_det.compression.search.plan_search import search_plan
from norton_det.config import load_config
from norton_det.ops.cp import decompose_filters

__version__ = version("norton_det")
__all__ = [
    "build_detector",
    "compress",
    "decompose_filters",
    "load_config",
    "load_detector",
    "load_resnet",
    "save",
    "search_plan",
]
