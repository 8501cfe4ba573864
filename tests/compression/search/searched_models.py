"""Tiny models that plans are searched for, what was measured of them, and what they cost."""

import itertools
from functools import cache

import numpy as np
import torch
from detectors import frames, tiny_classifier, tiny_detector

from norton_det.analysis.complexity import count, count_detector, total
from norton_det.compression.search import plan_search as search
from norton_det.compression.search.options import RATES
from norton_det.compression.search.plan_search import measure_sensitivities

RANK_ONE = "layer3.2.conv2"
FEW_RANKS = (None, 1, 2)
OPTIONS = tuple(itertools.product(FEW_RANKS, RATES))
CLASSIFIERS = ("resnet18", "resnet50", "resnext50_32x4d")
DETECTORS = ("mask_rcnn", "retinanet")
MODELS = (*CLASSIFIERS, *DETECTORS)


@cache
def model_of(name):
    """Classifiers by their body's name, detectors by their kind, on a ResNet-18; box heads worth factorising."""
    if name in CLASSIFIERS:
        return tiny_classifier(name)
    return tiny_detector(name, "resnet18", classes=5, box=256, mask=8)


@cache
def measured(name):
    return measure_sensitivities(model_of(name), frames(6, 64, 80), whole_detector=name in DETECTORS)


def counted(model, size, whole):
    if whole:
        return total(count_detector(model, *size))
    body = model.backbone.body if hasattr(model, "backbone") else model
    return count(body, torch.zeros(1, 3, *size))[""]


def random_solution(table, seed):
    rng = np.random.default_rng(seed)
    levels = {name: int(rng.integers(len(choices))) for name, choices in table.groups.items()}
    options = {name: int(rng.integers(len(item.errors))) for name, item in table.items.items()}
    cost = sum(table.groups[name][level].cost for name, level in levels.items())
    for name, option in options.items():
        item = table.items[name]
        cost += item.costs[tuple(levels[group] for group in item.groups)][option]
    return search.Solution(levels, options, 0.0, cost)
