"""Reads the files that training, compression and benchmarks write, as plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from norton_det.analysis.latency import Latency
from norton_det.compression.compress import CompressionReport
from norton_det.data.reading import Task

T = TypeVar("T")
Accuracy = dict[Task, dict[str, float | None]]


@dataclass(frozen=True)
class Run:
    """Holds what a run's folder holds; what is missing is empty, or None.

    Attributes:
        name: the folder's name.
        weights: the path of its model_final.pth.
        config: the content of config.yaml.
        steps: the lines of metrics.jsonl.
        accuracy: AP in points by kind (bbox, segm, keypoints), then by metric.
        by_category: AP in points by kind, then by category.
        predictions: the path of evaluation/predictions.json.
        compression: the report of the run's compression, or of the weights that it started from.
    """

    name: str
    weights: Path | None
    config: dict[str, Any]
    steps: list[dict[str, float]]
    accuracy: Accuracy
    by_category: Accuracy
    predictions: Path | None
    compression: CompressionReport | None


@dataclass(frozen=True)
class BenchmarkedModel:
    """Holds a model's latencies by treatment; `trained` says that it is the run of that name, not random weights."""

    treatments: dict[str, Latency]
    trained: bool = False


@dataclass(frozen=True)
class Benchmark:
    """Holds latencies of a call of models, by name, on one machine, for `batch` images of (height, width) pixels."""

    machine: str
    image: tuple[int, int]
    models: dict[str, BenchmarkedModel]
    batch: int = 1


def read_run(folder: Path, config: dict[str, Any]) -> Run:
    """Read what `norton-det train` or `compress` wrote into a folder; `config` is its configuration, {} if none.

    Raises ValueError for a folder that holds no run, and for a damaged file, which it names.
    """
    weights, evaluation = folder / "model_final.pth", folder / "evaluation"
    if not (config or weights.is_file() or evaluation.is_dir()):
        raise ValueError(f"{folder}: no run's folder, expected config.yaml, as `norton-det train` leaves it")
    return Run(
        name=folder.resolve().name,
        weights=weights if weights.is_file() else None,
        config=config,
        steps=_read_steps(folder / "metrics.jsonl"),
        accuracy=_read(evaluation / "metrics.json", Accuracy) or {},
        by_category=_read(evaluation / "per_category.json", Accuracy) or {},
        predictions=evaluation / "predictions.json" if (evaluation / "predictions.json").is_file() else None,
        compression=_find_compression(folder, config),
    )


def read_compression(path: Path) -> CompressionReport:
    """Read the report that `norton-det compress` writes beside the weights. Raises ValueError for a damaged file."""
    return _parse(path, CompressionReport, path.read_bytes())


def read_benchmark(path: Path) -> Benchmark:
    """Read what `norton-det benchmark --json` writes. Raises ValueError for a file damaged or without latencies."""
    benchmark = _parse(path, Benchmark, path.read_bytes())
    if not (benchmark.models and all(model.treatments for model in benchmark.models.values())):
        raise ValueError(f"{path} is damaged: a model without latencies")
    return benchmark


def _find_compression(folder: Path, config: dict[str, Any]) -> CompressionReport | None:
    """Read the report of the run's own compression, or else of the weights that it started from."""
    own = [folder / "compression.json", folder / "model_final.json"]
    started_from = [Path(config["model"]["weights"]).with_suffix(".json")] if config else []
    return next((read_compression(path) for path in own + started_from if path.is_file()), None)


def _read_steps(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    lines = [_parse(path, dict[str, float | None], line) for line in path.read_bytes().splitlines()]
    steps = [{name: value for name, value in line.items() if value is not None} for line in lines]
    for number, step in enumerate(steps, start=1):
        if missing := {"iteration", "loss", "lr"} - step.keys():
            raise ValueError(f"{path}: line {number} lacks {', '.join(sorted(missing))}")
    return steps


def _read(path: Path, kind: type[T]) -> T | None:
    return _parse(path, kind, path.read_bytes()) if path.is_file() else None


def _parse(path: Path, kind: type[T], text: bytes) -> T:
    """Parse JSON as a type. Raises ValueError naming the file and the first thing that is wrong in it."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path} is damaged: {f'{where}: ' if where else ''}{first['msg']}") from None
