"""Writes a report section by section."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from norton_det.analysis.complexity import total
from norton_det.compression.compress import CompressionReport, LayerReport
from norton_det.data.reading import Task
from norton_det.models.parts import REGION_KINDS
from norton_det.report import figures
from norton_det.report.material import Material
from norton_det.report.page import Fact, Section, facts, folded, note, pictures, plots, render, table
from norton_det.report.run_data import Benchmark

_KINDS: dict[Task, str] = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
_WORDS = {
    "faster": "Faster", "mask": "Mask", "keypoint": "Keypoint", "rcnn": "R-CNN", "retinanet": "RetinaNet",
    "fcos": "FCOS",
}  # fmt: skip
"""Spelling of the words in a detector's name."""
_TRAIN = "norton-det train"
_COMPRESS = "norton-det compress"
_LONGEST_PLOT = 40
"""The most categories in a plot; further ones get a plot beside it."""


def report(material: Material) -> str:
    """Return the report's HTML."""
    sections = [
        _results(material),
        _average_precision(material),
        _categories(material),
        _precision_recall(material),
        _validation_images(material),
        _pareto(material),
        _latency(material.benchmarks),
        _size(material),
        _compression(material.compression),
        _recovery(material.compression),
        _training(material),
        _configuration(material.told.config),
    ]
    return render(material.told.name, _subtitle(material.told.config), sections)


def _subtitle(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    kind = " ".join(_WORDS.get(word, word) for word in config["model"]["detector"].split("_"))
    train, test = (config["data"][split] for split in ("train", "test"))
    names = [data if isinstance(data, str) else data["annotations"] for data in (train, test)]
    return f"{kind}, trained on {names[0]}, evaluated on {names[1]}"


def _results(material: Material) -> Section:
    told, reference = material.told.name, material.reference
    quantities = [quantity for quantity in _quantities(material) if quantity.values]
    found = []
    for quantity in quantities:
        value, before = quantity.values.get(told), quantity.values.get(reference)
        if value is not None:
            comparison = f"{quantity.compare(value, before)} {reference}" if before and told != reference else ""
            found.append(Fact(quantity.label, quantity.form(value), comparison))
    rows = [
        [name, *(_cell(quantity.values.get(name), quantity.form) for quantity in quantities)]
        for name in dict.fromkeys([reference, *material.runs])
    ]
    overview = table(["", *(quantity.label for quantity in quantities)], rows, told)
    return Section("Results", facts(found) + (overview if len(rows) > 1 else "") if found else "", _TRAIN, wide=True)


@dataclass(frozen=True)
class _Quantity:
    """Holds a number of each model, by name, and how it is written and compared with another model's."""

    label: str
    values: Mapping[str, float | None]
    form: Callable[[float], str]
    compare: Callable[[float, float], str]


def _quantities(material: Material) -> list[_Quantity]:
    accuracies = [
        _Quantity(
            f"{_KINDS[kind]} AP",
            {name: run.accuracy[kind].get("AP") for name, run in material.runs.items() if kind in run.accuracy},
            _points,
            lambda value, before: f"{value - before:+.1f} vs",
        )
        for kind in material.kinds
    ]
    totals = {name: total(counts) for name, counts in material.counts.items()}
    return [
        *accuracies,
        _Quantity("parameters", {name: count.parameters for name, count in totals.items()}, _short, _change),
        _Quantity("MACs", {name: count.macs for name, count in totals.items()}, _short, _change),
        _Quantity("latency", material.latencies(), lambda value: f"{figures.short_number(value)} ms", _change),
    ]


def _average_precision(material: Material) -> Section:
    tables = []
    for kind in material.kinds:
        runs = {name: run.accuracy[kind] for name, run in material.runs.items() if kind in run.accuracy}
        metrics = list(dict.fromkeys(metric for values in runs.values() for metric in values))
        rows = [[name, *(_cell(values.get(metric), _points) for metric in metrics)] for name, values in runs.items()]
        tables.append(table([f"{_KINDS[kind]}", *metrics], rows, material.told.name))
    return Section("Average precision", "".join(tables), _TRAIN, wide=True)


def _categories(material: Material) -> Section:
    name, kind = material.told.name, material.kinds[-1] if material.kinds else "bbox"
    runs = {name: run.by_category[kind] for name, run in material.runs.items() if kind in run.by_category}
    known = [(value, category) for category, value in runs.pop(name, {}).items() if value is not None]
    rows = [(category, value) for value, category in sorted(known, reverse=True)]
    columns = [dict(rows[start : start + _LONGEST_PLOT]) for start in range(0, len(rows), _LONGEST_PLOT)]
    caption = f"{_KINDS[kind].capitalize()} AP of each category"
    highest = max(
        [value for value, _ in known] + [value or 0 for run in runs.values() for value in run.values()], default=0
    )
    drawn = [(figures.plot_categories(name, column, runs, highest), caption) for column in columns]
    return Section("Categories", plots(*drawn) if drawn else "", _TRAIN, wide=len(drawn) > 1)


def _precision_recall(material: Material) -> Section:
    if material.curves is None:
        return Section("Precision and recall", "", _TRAIN)
    measure = "OKS" if material.told.config["model"]["detector"] == "keypoint_rcnn" else "IoU"
    svg = figures.plot_precision_recall(material.curves, measure)
    caption = f"Precision at each recall: mean over the categories, and the categories at {measure} 0.5"
    return Section("Precision and recall", plots((svg, caption)), _TRAIN)


def _validation_images(material: Material) -> Section:
    if not material.pairs:
        return Section("Validation images", "", _TRAIN)
    explained = note("Evenly spread over the validation set; predictions with a score of at least 50 %.")
    return Section("Validation images", explained + pictures(material.pairs), _TRAIN, wide=True)


def _pareto(material: Material) -> Section:
    points = {}
    for name, latency in material.latencies().items():
        accuracy = material.runs[name].accuracy.get("bbox", {}).get("AP")
        if accuracy is not None:
            points[name] = (latency, accuracy)
    title, source = (
        "AP against latency",
        "norton-det benchmark --weights DIR/model_final.pth .. --json F.json, then report --benchmark F.json",
    )
    if len(points) < 2:
        return Section(title, "", source)
    caption = "Box AP against latency: up and to the left is better"
    return Section(title, plots((figures.plot_pareto(points, material.told.name), caption)), source)


def _latency(benchmarks: Sequence[Benchmark]) -> Section:
    drawn = []
    for benchmark in benchmarks:
        treatments = list(dict.fromkeys(name for model in benchmark.models.values() for name in model.treatments))
        rows = {
            treatment: {
                name: model.treatments[treatment]
                for name, model in benchmark.models.items()
                if treatment in model.treatments
            }
            for treatment in treatments
        }
        height, width = benchmark.image
        weights = "the runs" if any(model.trained for model in benchmark.models.values()) else "random weights"
        images = "an image" if benchmark.batch == 1 else f"{benchmark.batch} images"
        caption = f"Latency of {weights}, {images} of {width} x {height} pixels a call, on {benchmark.machine}"
        drawn.append((figures.plot_latencies(rows), caption))
    return Section(
        "Latency",
        plots(*drawn) if drawn else "",
        "norton-det benchmark --json F.json, then report --benchmark F.json",
    )


def _size(material: Material) -> Section:
    names = dict.fromkeys(name for name in (material.reference, material.told.name) if name in material.counts)
    models = {name: material.counts[name] for name in names}
    if not models:
        return Section("Size by part", "", _TRAIN)
    height, width = material.input_size
    heads = [name for counts in models.values() for name in counts if name.removesuffix("_head") in REGION_KINDS]
    regions = ", all proposed regions in the box head" if heads else ""
    others = " and one in the other" if {*heads} - {"box_head"} else ""
    drawn = plots(
        (
            figures.plot_parts(models, "macs", 1e9, "GMACs"),
            f"MACs for an image of {width} x {height} pixels{regions}{others}",
        ),
        (figures.plot_parts(models, "parameters", 1e6, "million parameters"), "Parameters"),
    )
    return Section("Size by part", drawn, _TRAIN, wide=True)


def _compression(compression: CompressionReport | None) -> Section:
    if compression is None:
        return Section("Compression by layer", "", _COMPRESS)
    layers = sorted(compression.layers, key=_place)
    rows = [
        [
            layer.name,
            _arrow(layer.shape[0], layer.compressed_shape[0]),
            _arrow(layer.shape[1], layer.compressed_shape[1]),
            _cell(layer.rank, str),
            _cell(layer.nmse, "{:.3f}".format),
            _arrow(layer.parameters, layer.compressed_parameters),
        ]
        for layer in layers
    ]
    columns = ["layer", "filters", "inputs", "rank", "NMSE", "parameters"]
    caption = "Filters of each layer before and after, and the error (NMSE) of the layers that were decomposed"
    drawn = plots((figures.plot_layers(layers), caption))
    return Section("Compression by layer", drawn + folded(f"All {len(rows)} layers", table(columns, rows)), _COMPRESS)


def _recovery(compression: CompressionReport | None) -> Section:
    title, source = "Recovery by block", f"{_COMPRESS} --images DIR"
    if compression is None or not compression.recovery:
        return Section(title, "", source)
    caption = (
        "Error of each part relative to the dense network, on held-back images, before and after recovery; for the"
        " whole detector, how far its outputs lie from the dense one's"
    )
    return Section(title, plots((figures.plot_recovery(compression.recovery), caption)), source)


def _training(material: Material) -> Section:
    steps = material.told.steps
    if not steps:
        return Section("Training", "", _TRAIN)
    runs = {name: run.steps for name, run in material.runs.items() if run.steps}
    parts = sorted({key for step in steps for key in step if key.startswith("loss_")})
    components = {part.removeprefix("loss_").replace("_", " "): _curve(steps, part) for part in [*parts, "loss"]}
    drawn = [
        (figures.plot_steps({name: _curve(own, "loss") for name, own in runs.items()}, "loss"), "Loss"),
        (
            figures.plot_steps({name: _curve(own, "lr") for name, own in runs.items()}, "learning rate"),
            "Learning rate",
        ),
    ]
    if parts:
        drawn.insert(1, (figures.plot_steps(components, "loss"), f"The loss of {material.told.name} and its parts"))
    return Section("Training", plots(*drawn), _TRAIN, wide=True)


def _configuration(config: Mapping[str, Any]) -> Section:
    general = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = {"general": general, **{key: value for key, value in config.items() if isinstance(value, dict)}}
    tables = [
        folded(name, table(["key", "value"], [[key, _plain(value)] for key, value in values.items()]))
        for name, values in groups.items()
    ]
    return Section("Configuration", "".join(tables) if config else "", _TRAIN, wide=True)


def _curve(steps: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(step["iteration"], step[key]) for step in steps if key in step]


def _place(layer: LayerReport) -> tuple[bool, list[str | int]]:
    """Return a key that sorts the body first, in the order of the data, then other parts; block 2 before block 10."""
    numbered: list[str | int] = [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", layer.name)]
    return not layer.name.startswith(("conv1", "layer")), numbered


def _plain(value: Any) -> str:
    """Return a value of the configuration as it stands in YAML, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _cell(value: float | None, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _points(value: float) -> str:
    return f"{value:.1f}"


def _short(value: float) -> str:
    """Format a count with three digits: 2.07 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{figures.short_number(value / unit)} {letter}"
    return f"{value:.0f}"


def _change(value: float, before: float) -> str:
    return f"{100 * (value / before - 1):+.0f} % vs"


def _arrow(before: int, after: int) -> str:
    return f"{before:,} → {after:,}" if after != before else f"{before:,}"
