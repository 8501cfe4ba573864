"""Write one self-contained HTML page about a training run, beside others and with benchmarks."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from norton_det.analysis.complexity import Count, count_detector
from norton_det.builders.resolve import resolve_categories, resolve_dataset, resolve_task
from norton_det.compression.building import uncompressed
from norton_det.compression.compress import CompressionReport
from norton_det.config import Config, load_config
from norton_det.evaluation.coco import PrecisionRecall, load_results, precision_recall
from norton_det.files import atomic_path
from norton_det.models.persistence import detector_from_weights
from norton_det.models.weights import read_weights
from norton_det.report.material import Material
from norton_det.report.pictures import Pair, draw_pairs
from norton_det.report.run_data import Benchmark, Run, read_benchmark, read_compression, read_run
from norton_det.report.sections import report

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--runs", required=True, nargs="+", type=Path, metavar="DIR",
        help="folders of training runs: the page tells the last one in detail and compares the others with it",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark", nargs="+", type=Path, default=[], metavar="F.json",
        help="latencies from the benchmark command; the plot of AP against latency needs one with --weights",
    )  # fmt: skip
    parser.add_argument(
        "--compression", type=Path, metavar="O.json",
        help="the compress command's report (default: the run's own, or that of the weights it started from)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="where the page goes (.html)")


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    if args.output.suffix != ".html":
        raise ValueError(f"--output {args.output}: a report is a .html file")
    compression = read_compression(args.compression) if args.compression else None
    write_report(args.output, args.runs, [read_benchmark(path) for path in args.benchmark], compression)
    print(f"report: {args.output}")


def write_report(
    path: Path, folders: Sequence[Path], benchmarks: Sequence[Benchmark], compression: CompressionReport | None = None
) -> None:
    """Gather the files of runs and write the page; the last of `folders` is the run that is told in detail.

    Raises ValueError if two folders have the same name, or one holds no run.
    """
    configs = [_read_config(folder) for folder in folders]
    dumped = [config.model_dump(mode="json") if config else {} for config in configs]
    found = [*map(read_run, folders, dumped)]
    runs = {run.name: run for run in found}
    if len(runs) < len(found):
        raise ValueError(f"--runs: two folders have the same name, got {', '.join(map(str, folders))}")
    told, config = found[-1], configs[-1]
    curves, pairs = evaluate_again(told, config) if config else (None, [])
    reference, size, counts = count_runs(found)
    material = Material(runs, reference, counts, size, compression or told.compression, curves, pairs, benchmarks)
    with atomic_path(path) as temporary:
        temporary.write_text(report(material), encoding="utf-8")


def evaluate_again(run: Run, config: Config) -> tuple[PrecisionRecall | None, list[Pair]]:
    """Compute precision-recall curves and draw validation images from the predictions that the run wrote."""
    if run.predictions is None:
        return None, []
    task = resolve_task(config)
    files = resolve_dataset(config, "test")
    results = load_results(run.predictions, files.annotations, task)
    pairs = draw_pairs(files, resolve_categories(config, files), task, results)
    curves = precision_recall(files.annotations, results, task, config.data.oks_sigmas, config.test.detections)
    return curves, pairs


def count_runs(runs: Sequence[Run]) -> tuple[str, tuple[int, int], dict[str, dict[str, Count]]]:
    """Count the detectors of runs.

    Returns the name of the dense one, the (height, width) for which they are counted, and counts by part. The dense
    one is the first dense run; if there is none, the last run's detector as it was before compression; if its file
    does not tell that, the first run stands for it.
    """
    weights = {run.name: read_weights(run.weights) for run in runs if run.weights}
    if not weights:
        return runs[0].name, (0, 0), {}
    detectors = {name: detector_from_weights(read) for name, read in weights.items()}
    last = list(detectors.values())[-1]
    reference = next((name for name, read in weights.items() if not read.is_compressed), None)
    if reference is None:
        try:
            detectors["dense"], reference = uncompressed(last), "dense"
        except ValueError as error:
            log.warning("the dense detector is not counted: %s", error)
    size = last.transform.min_size[-1], last.transform.max_size
    counts = {name: count_detector(detector, *size) for name, detector in detectors.items()}
    return reference or runs[0].name, size, counts


def _read_config(folder: Path) -> Config | None:
    path = folder / "config.yaml"
    return load_config(path) if path.is_file() else None
