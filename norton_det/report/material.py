"""Holds all that a report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from norton_det.analysis.complexity import Count
from norton_det.compression.compress import CompressionReport
from norton_det.data.reading import Task
from norton_det.evaluation.coco import PrecisionRecall
from norton_det.report.pictures import Pair
from norton_det.report.run_data import Benchmark, Run


@dataclass(frozen=True)
class Material:
    """Holds a report's runs and what is known of them.

    Attributes:
        runs: the runs by name; the last one is told in detail, the others are compared with it.
        reference: the name of the dense model, a run or a model that is only counted; or of the first run.
        counts: parameters and MACs by name, then by part of the detector.
        input_size: the (height, width) in pixels for which is counted, as the image enters the body.
        compression, curves, pairs: those of the run that is told; None or empty if they are unknown.
        benchmarks: latencies; the trained models in them are runs by name.
    """

    runs: Mapping[str, Run]
    reference: str
    counts: Mapping[str, Mapping[str, Count]]
    input_size: tuple[int, int]
    compression: CompressionReport | None
    curves: PrecisionRecall | None
    pairs: Sequence[Pair]
    benchmarks: Sequence[Benchmark]

    @property
    def told(self) -> Run:
        """Return the run that is told in detail."""
        return list(self.runs.values())[-1]

    @property
    def kinds(self) -> list[Task]:
        """Return the kinds that were evaluated: bbox, and segm or keypoints."""
        return list(dict.fromkeys(kind for run in self.runs.values() for kind in run.accuracy))

    def latencies(self) -> dict[str, float]:
        """Return the runs' median milliseconds in the first treatment of the first benchmark that has any of them."""
        for benchmark in self.benchmarks:
            trained = {name: model for name, model in benchmark.models.items() if model.trained and name in self.runs}
            if trained:
                return {name: next(iter(model.treatments.values())).median for name, model in trained.items()}
        return {}
