"""What of a configuration may be another one when a run is resumed."""

import os
from collections.abc import Mapping
from typing import Any

from norton_det.config import Config
from norton_det.data.catalog import DatasetFiles
from norton_det.engine.resuming import Contents, Rule, check_changes
from norton_det.files import digest

_KEYS: dict[Rule, str] = {
    "changes": """
        output_dir device data.test data.augmentation data.oks_sigmas data.workers data.damaged_images
        train.lr train.momentum train.weight_decay train.schedule train.milestones train.warmup_iterations
        train.epochs train.max_iterations train.accumulation train.precision train.distill_weight train.clip_norm
        train.ema train.checkpoint_period train.log_period test.batch_size
    """,
    "by content": "model.plan model.backbone_weights model.weights model.teacher data.train",
    "may not become none": "test.score_threshold test.detections",
}
RULES = {key: rule for rule, keys in _KEYS.items() for key in keys.split()}
"""All other keys stay: the structure, the sizes, the optimiser, the order of images."""


def read_contents(config: Config, files: DatasetFiles) -> Contents:
    """Digests of the weights, the plan and the training annotations that a configuration names."""
    model = config.model
    named = {f"model.{key}": getattr(model, key) for key in ("plan", "backbone_weights", "weights", "teacher")}
    named["data.train"] = str(files.annotations)
    return {key: digest(path) for key, path in named.items() if isinstance(path, str) and os.path.isfile(path)}


def resumed_contents(config: Config, contents: Contents, checkpoint: Mapping[str, Any]) -> Contents:
    """The contents that a checkpoint's run goes on with. Raises ValueError where it may not, as `check_changes`."""
    before = checkpoint.get("contents", {})
    old, new = (_flat(values) for values in (checkpoint["config"], config.model_dump(mode="json")))
    check_changes(old, new, RULES, before, contents)
    return {**before, **contents}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    sections = {key for key, value in config.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in config.items() if key not in sections}
    return flat | {f"{name}.{key}": value for name in sections for key, value in config[name].items()}
