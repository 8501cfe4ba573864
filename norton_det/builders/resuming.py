"""Decides what of a configuration may change when a run is resumed."""

from collections.abc import Mapping
from typing import Any

from norton_det.config import Config
from norton_det.data.catalog import DatasetFiles
from norton_det.engine.resuming import Contents, by_setting, check_changes, digests

RULES = by_setting({
    "changes": """
        output_dir device data.test data.augmentation data.oks_sigmas data.workers data.damaged_images
        train.lr train.momentum train.weight_decay train.schedule train.milestones train.warmup_iterations
        train.epochs train.max_iterations train.accumulation train.precision train.distill_weight train.clip_norm
        train.ema train.checkpoint_period train.log_period test.batch_size
    """,
    "by content": "model.plan model.backbone_weights model.weights model.teacher data.train",
    "may not become none": "test.score_threshold test.detections",
})  # fmt: skip
"""The keys that may change, by rule. All others must stay: structure, sizes, optimiser, order of the images."""


def read_contents(config: Config, files: DatasetFiles) -> Contents:
    """Compute digests of the weights, the plan and the training annotations that a configuration names."""
    model = config.model
    named = {f"model.{key}": getattr(model, key) for key in ("plan", "backbone_weights", "weights", "teacher")}
    return digests(named | {"data.train": str(files.annotations)})


def resumed_contents(config: Config, contents: Contents, checkpoint: Mapping[str, Any]) -> Contents:
    """Return the contents that a checkpoint's run goes on with, see `check_changes`, which raises ValueError."""
    old, new = (_flat(values) for values in (checkpoint["config"], config.model_dump(mode="json")))
    return check_changes(old, new, RULES, checkpoint.get("contents", {}), contents)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    sections = {key for key, value in config.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in config.items() if key not in sections}
    return flat | {f"{name}.{key}": value for name in sections for key, value in config[name].items()}
