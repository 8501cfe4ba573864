"""Runs a configuration: training with an evaluation after it, or evaluation alone."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from norton_det.builders.categories import known_categories
from norton_det.builders.datasets import (
    build_evaluation_loader,
    build_evaluator,
    build_test_dataset,
    build_training_dataset,
    require_files,
)
from norton_det.builders.detector import (
    build_detector,
    build_evaluated,
    recovery_images,
    resumed_detector,
    unfinished_recovery,
)
from norton_det.builders.resolve import (
    check_plan,
    resolve_categories,
    resolve_dataset,
    resolve_device,
    starting_weights,
)
from norton_det.builders.resuming import read_contents, resumed_contents
from norton_det.builders.training import build_batches, build_training
from norton_det.config import Config, save_config
from norton_det.data.coco import CocoDataset
from norton_det.deploy.runtimes import ExportedDetector
from norton_det.engine import distributed
from norton_det.engine.checkpoint import CheckpointFolder
from norton_det.engine.folder import KEPT, put_aside
from norton_det.engine.metrics import MetricsWriter
from norton_det.engine.trainer import resume, train
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.evaluation.inference import run_inference
from norton_det.files import atomic_path, save_tensors, write_json
from norton_det.models.channels import DETECTOR_BODY
from norton_det.models.persistence import describe, origin_of, save_weights

log = logging.getLogger(__name__)


def evaluate_weights(config: Config) -> None:
    """Evaluate `model.weights`, a weights file or an exported one, on the test set. Raises ValueError for "none"."""
    if config.model.weights == "none":
        raise ValueError("--eval-only evaluates model.weights: give them as model.weights=FILE")
    files = resolve_dataset(config, "test")
    images = build_test_dataset(config, files)
    require_files(config, images, files, training=False)
    detector = build_evaluated(config, resolve_categories(config, files)).to(resolve_device(config))
    evaluator = build_evaluator(config, files, known_categories(detector))
    evaluate_detector(config, detector, images, evaluator, Path(config.output_dir) / "evaluation")


def train_and_evaluate(config: Config, *, from_checkpoint: bool = False) -> None:
    """Train the configured detector, or go on from the newest checkpoint of output_dir, then evaluate it.

    Raises ValueError before training begins for what the configuration, weights, data or checkpoint do not allow.
    """
    device = resolve_device(config)
    test_files, files = (resolve_dataset(config, split) for split in ("test", "train"))
    output = Path(config.output_dir)
    checkpoint = CheckpointFolder(output / "checkpoints").load_newest() if from_checkpoint else None
    weights = None if checkpoint else starting_weights(config)
    if not checkpoint:
        check_plan(config, weights)
    categories = resolve_categories(config, files)
    evaluator = build_evaluator(config, test_files, categories)
    dataset, test_images = build_training_dataset(config, files, categories), build_test_dataset(config, test_files)
    require_files(config, dataset, files, training=True)
    require_files(config, test_images, test_files, training=False)
    contents = read_contents(config, files)
    if checkpoint:
        contents = resumed_contents(config, contents, checkpoint)
        built = resumed_detector(config, checkpoint)
    else:
        built = build_detector(config, categories, weights, images=recovery_images(config, dataset))
    run = build_training(config, built, dataset, device, contents)
    start = resume(run, checkpoint)
    if not checkpoint:
        restored = built.report and built.report.recovery
        put_aside(output, KEPT if restored else (*KEPT, unfinished_recovery(config).name))
    if distributed.is_main():
        with atomic_path(output / "config.yaml") as path:
            save_config(config, path)
        if built.report:
            write_json(output / "compression.json", built.report.to_dict())
            if origin_of(built.model).dense_weights is None:  # it started from a backbone, not from a detector
                save_backbone(output / "backbone_compressed.pth", built.model)
    with MetricsWriter(output / "metrics.jsonl", run.iterations, start) as metrics:
        train(run, build_batches(config, dataset, start), metrics, start)
    if distributed.is_main():
        save_weights(output / "model_final.pth", run.result, config=config.model_dump(mode="json"))
        unfinished_recovery(config).unlink(missing_ok=True)
        log.info("weights: %s", output / "model_final.pth")
    evaluate_detector(config, run.result, test_images, evaluator, output / "evaluation")


def save_backbone(path: Path, detector: Any) -> None:
    """Write the body that was compressed at the start, in the form that `model.backbone_weights` takes."""
    told = describe(detector)
    geometry = {name.removeprefix(DETECTOR_BODY): pairs for name, pairs in told["network"]["geometry"].items()}
    network = {"norm_eps": told["network"]["norm_eps"], "geometry": geometry}
    origin: dict[str, Any] = {name: told[name] for name in ("plan", "kept", "widths") if name in told}
    save_tensors(path, {"model": detector.backbone.body.state_dict(), "network": network, **origin})
    log.info("compressed backbone: %s", path)


def evaluate_detector(
    config: Config,
    detector: nn.Module | ExportedDetector,
    images: CocoDataset,
    evaluator: CocoEvaluator,
    folder: Path,
) -> None:
    """Write AP on the test set, over all processes, and predictions into `folder`.

    The files are metrics.json, per_category.json and predictions.json.
    """
    device = resolve_device(config)
    loader = build_evaluation_loader(config, images)
    seen = run_inference(detector.eval(), loader, evaluator, device, distributed.is_main())
    image_ids = sorted(image_id for part in distributed.gather(seen) for image_id in part)
    results = [result for part in distributed.gather(evaluator.results) for result in part]
    if not distributed.is_main():
        return
    evaluator.results = sorted(results, key=lambda result: result["image_id"])
    metrics, by_category = evaluator.evaluate_by_category(image_ids)
    write_json(folder / "predictions.json", evaluator.results)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "per_category.json", by_category)
    for title, table in (("", metrics), (" AP by category", by_category)):
        for task, values in table.items():
            log.info("%s%s: %s", task, title, "  ".join(f"{name} {value:.1f}" for name, value in values.items()))
