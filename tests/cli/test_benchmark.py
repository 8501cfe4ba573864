"""The benchmark command without its measuring: which models it takes, and what it says of their times."""

import json
from pathlib import Path

import pytest
import torch
from detectors import tiny_detector

import norton_det
import norton_det.cli.benchmark
from norton_det.analysis.complexity import count_detector
from norton_det.analysis.roofline import Roofline
from norton_det.cli.benchmark import build_models
from norton_det.cli.main import main
from norton_det.config import load_config
from norton_det.deploy import benchmark
from norton_det.deploy.benchmark import Measured, profile
from norton_det.deploy.tables import format_latencies, format_profiles
from norton_det.deploy.treatments import SHIPPED

TINY = ["model.width=0.125", "model.fpn_channels=16", "model.box_channels=32"]


def test_speeds_are_beside_the_dense_model_and_beside_the_first_row():
    def measured(median):
        return Measured(median, median - 1, median + 2, 5, 1500 / median, 1.5, 3 * 2**20)

    table = format_latencies(
        {
            "torch": {"dense": measured(20.0), "small": measured(8.0)},
            "openvino": {"dense": measured(10.0), "small": measured(5.0)},
        }
    ).splitlines()
    assert [line.split() for line in table[1:]] == [
        ["torch", "dense", "20.0", "19.0", "22.0", "1.00x", "1.00x", "75.00", "1.50x", "3"],
        ["torch", "small", "8.0", "7.0", "10.0", "2.50x", "2.50x", "187.50", "1.50x", "3"],
        ["openvino", "dense", "10.0", "9.0", "12.0", "1.00x", "2.00x", "150.00", "1.50x", "3"],
        ["openvino", "small", "5.0", "4.0", "7.0", "2.00x", "4.00x", "300.00", "1.50x", "3"],
    ]


def test_models_are_the_dense_one_and_one_a_plan():
    models = build_models(load_config("quickstart.yaml", TINY), ["norton-43", "norton-77"])
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert list(sizes) == ["dense", "norton-43", "norton-77"]
    assert sizes["dense"] > sizes["norton-43"] > sizes["norton-77"]


@pytest.fixture
def quick(monkeypatch):
    """The machine's limits are not measured."""
    monkeypatch.setattr(benchmark, "measure_roofline", lambda device: Roofline(1e9, 1e9))


def test_a_batch_is_one_image_so_many_times_and_the_workload_is_fixed(quick, monkeypatch):
    calls = []

    def measured(detectors, images, runs):
        calls.append((detectors, images))
        return {name: Measured(1.0, 1.0, 1.0, runs, 1.0, 1.0, 0) for name in detectors}

    monkeypatch.setattr(benchmark, "measure", measured)
    monkeypatch.setattr(benchmark, "profile", lambda *_: {})
    monkeypatch.setattr(norton_det.cli.benchmark, "format_profiles", str)
    monkeypatch.setattr(benchmark, "time_by_part", lambda *_: {"resize": 1.0, "rest": 2.0})
    words = ["benchmark", "--config", "quickstart.yaml", "model.plan=none", *TINY, "--treatments", "torch"]
    assert main([*words, "--batch", "3", "--runs", "1", "--detections", "4", "--input-size", "64", "96"]) == 0
    [(detectors, images)] = calls
    assert [image.shape for image in images] == [(3, 64, 96)] * 3
    assert all(torch.equal(image, images[0]) for image in images)
    assert [found.detector.roi_heads.detections_per_img for found in detectors.values()] == [4]


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "mask_rcnn_v2"])
def test_detectors_of_any_kind_are_measured(kind, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plan = {"notation": "[0.25]*12", "parts": {"neck": 1, "classification_head": 1, "box_head": 4}}
    for name, chosen in (("dense", None), ("small", plan)):
        norton_det.save(tiny_detector(kind, "resnet18", chosen, channels=64), f"{name}.pth")
    words = ["--weights", "dense.pth", "small.pth", "--treatments", SHIPPED, "--runs", "1", "--json", "out.json"]
    assert main(["benchmark", *words, "--input-size", "64", "96"]) == 0
    models = json.loads(Path("out.json").read_text())["models"]
    assert models["dense"]["macs"] > models["small"]["macs"] and models["dense"]["parameters"] > 0
    regions = {"box", "mask"} if kind == "mask_rcnn_v2" else set()
    assert set(models["dense"]["regions"]) == regions
    told = capsys.readouterr().out
    assert ("regions:" in told) == bool(regions)
    shipped = models["small"]["treatments"][SHIPPED]
    assert set(shipped["share_of_arithmetic"]) < set(shipped["seconds_by_part"])
    assert "ms by part" in told and f"{SHIPPED}, small" in told
    assert f"body, neck and {'RPN' if regions else 'heads'} reach" in told


@pytest.mark.parametrize(
    ("kind", "every_level"), [("faster_rcnn", ["rpn"]), ("fcos", ["classification_head", "regression_head"])]
)
def test_the_share_of_the_peak_is_that_of_what_looks_at_the_whole_image(kind, every_level):
    detector = tiny_detector(kind, "resnet18", channels=64)
    seconds = {
        "stem": 0.25,
        "stage 1": 0.75,
        "neck": 2.0,
        "rpn head" if kind == "faster_rcnn" else "heads": 1.0,
        "rest": 9.0,
    }
    images = [torch.rand(3, 64, 96)] * 2
    found = profile(detector, seconds, images, peak_macs=1e9)
    counts = count_detector(detector, 64, 96)
    macs = sum(counts[part].macs_as_run for part in ("body", "neck", *every_level))
    assert found["share_of_peak"] == pytest.approx(2 * macs / 4.0 / 1e9)
    assert found["milliseconds_by_part"]["rest"] == 9000
    assert "9000.0" in format_profiles({"it": found})
