"""Run folders as training leaves them, and damaged ones."""

import json

import pytest

from norton_det.compression.compress import CompressionReport, LayerReport, PartReport
from norton_det.files import write_json
from norton_det.report.run_data import read_benchmark, read_compression, read_run

REPORT = CompressionReport(
    layers=(
        LayerReport("layer1.0.conv2", (64, 64, 3, 3), (49, 49, 3, 3), 1, 0.25, 36864, 2744),
        LayerReport("layer1.0.conv3", (256, 64, 1, 1), (256, 49, 1, 1), None, None, 16384, 12544),
    ),
    kept={"layer1.0.conv2": [0, 2]},
    recovery=(PartReport("layer1.0", 0.5, 0.25),),
)
CONFIG = {"model": {"weights": "none"}}


def write_run(folder):
    lines = [{"iteration": number, "loss": 2.0 / number, "lr": 0.1, "loss_objectness": 1.0} for number in (1, 2)]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "evaluation/metrics.json", {"bbox": {"AP": 40.5, "APs": float("nan")}})
    write_json(folder / "evaluation/per_category.json", {"bbox": {"car": 40.5}})
    write_json(folder / "evaluation/predictions.json", [])
    return folder


def test_a_run_says_what_training_left(tmp_path):
    folder = write_run(tmp_path / "tuned")
    run = read_run(folder, CONFIG)
    assert run.name == "tuned"
    assert [step["loss"] for step in run.steps] == [2.0, 1.0]
    assert run.accuracy == {"bbox": {"AP": 40.5, "APs": None}}
    assert run.by_category == {"bbox": {"car": 40.5}}
    assert run.predictions == folder / "evaluation/predictions.json"
    assert (run.weights, run.compression) == (None, None)


def test_what_a_run_lacks_is_empty(tmp_path):
    (tmp_path / "model_final.pth").touch()
    run = read_run(tmp_path, {})
    assert (run.steps, run.accuracy, run.by_category, run.predictions) == ([], {}, {}, None)
    assert run.weights == tmp_path / "model_final.pth"


@pytest.mark.parametrize("own", ["compression.json", "model_final.json", None])
def test_the_compression_is_the_runs_own_or_that_of_the_weights_it_started_from(own, tmp_path):
    folder = write_run(tmp_path / "run")
    other = CompressionReport((), {})
    write_json(tmp_path / "small.json", (other if own else REPORT).to_dict())
    if own:
        write_json(folder / own, REPORT.to_dict())
    assert read_run(folder, {"model": {"weights": str(tmp_path / "small.pth")}}).compression == REPORT


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match=r"no run's folder, expected config\.yaml"):
            read_run(folder, {})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "metrics.jsonl",
            '{"iteration": 1, "loss": 1.0, "lr": 0.1}\n{"iterat',
            "metrics.jsonl is damaged: Invalid JSON",
        ),
        ("metrics.jsonl", '{"iteration": 1, "loss": 1.0}\n', "line 1 lacks lr"),
        ("metrics.jsonl", '{"iteration": 1, "loss": "low", "lr": 0.1}\n', "is damaged: loss: Input should be"),
        ("evaluation/metrics.json", '{"top1": 71.0}', "metrics.json is damaged: top1"),
        ("evaluation/metrics.json", '{"mask": {}}', "metrics.json is damaged: mask"),
        ("evaluation/per_category.json", "", "per_category.json is damaged: Invalid JSON"),
        ("compression.json", '{"layers": []}', "compression.json is damaged: kept: Field required"),
    ],
)
def test_a_damaged_file_is_named(name, content, expected, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=expected):
        read_run(folder, CONFIG)


def test_a_compression_report_reads_back(tmp_path):
    write_json(tmp_path / "small.json", REPORT.to_dict())
    assert read_compression(tmp_path / "small.json") == REPORT


def test_a_benchmark_says_which_models_were_trained(tmp_path):
    latency = {"median": 10.0, "p5": 9.0, "p95": 12.0, "runs": 5, "peak_memory": 1}
    models = {
        "run": {"trained": True, "macs": 7, "treatments": {"torch": latency}},
        "dense": {"treatments": {"torch": latency}},
    }
    write_json(tmp_path / "b.json", {"machine": "a CPU", "image": [480, 640], "batch": 1, "models": models})
    benchmark = read_benchmark(tmp_path / "b.json")
    assert benchmark.image == (480, 640)
    assert benchmark.models["run"].treatments["torch"].p95 == 12.0
    assert [model.trained for model in benchmark.models.values()] == [True, False]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"machine": "a CPU", "models": {}}, "image: Field required"),
        ({"machine": "a CPU", "image": [1, 1], "models": {}}, "a model without latencies"),
        ({"machine": "a CPU", "image": [1, 1], "models": {"run": {"treatments": {}}}}, "a model without latencies"),
    ],
)
def test_a_damaged_benchmark_is_named(content, expected, tmp_path):
    write_json(tmp_path / "b.json", content)
    with pytest.raises(ValueError, match=f"b.json is damaged: {expected}"):
        read_benchmark(tmp_path / "b.json")
