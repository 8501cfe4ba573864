"""NORTON for detectors: filter decomposition and pruning of ResNet-50 R-CNNs."""

from norton_det.api import build_detector, compress, load_detector, load_resnet50
from norton_det.config import load_config
from norton_det.deploy.optimize import optimize
from norton_det.ops.cp import decompose_filters

__version__ = "0.1.0"
__all__ = [
    "build_detector",
    "compress",
    "decompose_filters",
    "load_config",
    "load_detector",
    "load_resnet50",
    "optimize",
]
