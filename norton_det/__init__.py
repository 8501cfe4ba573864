"""Compresses torchvision and Detectron2 detectors on ResNets by NORTON: filter decomposition and pruning."""

import os
from importlib.metadata import version

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # before torch: threads wait for each other asleep
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # after microseconds, not milliseconds

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
