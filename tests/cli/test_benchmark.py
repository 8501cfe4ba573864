"""The benchmark command without its measuring: which models it takes, and what it says of their times."""

import torch

from norton_det.cli import benchmark
from norton_det.cli.benchmark import Measured, build_models, format_latencies
from norton_det.cli.main import main
from norton_det.config import load_config

TINY = ["model.width=0.125", "model.fpn_channels=16", "model.box_channels=32"]


def test_speeds_are_beside_the_dense_model_and_beside_the_first_row():
    def measured(median):
        return Measured(median, median - 1, median + 2, 5, 3 * 2**20)

    table = format_latencies(
        {
            "torch": {"dense": measured(20.0), "small": measured(8.0)},
            "openvino": {"dense": measured(10.0), "small": measured(5.0)},
        }
    ).splitlines()
    assert [line.split() for line in table[1:]] == [
        ["torch", "dense", "20.0", "19.0", "22.0", "50.00", "1.00x", "1.00x", "3"],
        ["torch", "small", "8.0", "7.0", "10.0", "125.00", "2.50x", "2.50x", "3"],
        ["openvino", "dense", "10.0", "9.0", "12.0", "100.00", "1.00x", "2.00x", "3"],
        ["openvino", "small", "5.0", "4.0", "7.0", "200.00", "2.00x", "4.00x", "3"],
    ]


def test_models_are_the_dense_one_and_one_a_plan():
    models = build_models(load_config("quickstart.yaml", TINY), ["norton-43", "norton-77"])
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert list(sizes) == ["dense", "norton-43", "norton-77"]
    assert sizes["dense"] > sizes["norton-43"] > sizes["norton-77"]


def test_a_batch_is_one_image_so_many_times_and_the_workload_is_fixed(monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "treated", lambda model, *_: lambda images: calls.append((model, images)))
    monkeypatch.setattr(benchmark, "measure_roofline", lambda device: Roofline())
    monkeypatch.setattr(benchmark, "describe", lambda *_: {})
    monkeypatch.setattr(benchmark, "format_details", str)
    words = ["benchmark", "--config", "quickstart.yaml", "model.plan=none", *TINY, "--treatments", "torch"]
    assert main([*words, "--batch", "3", "--runs", "1", "--detections", "4", "--input-size", "64", "96"]) == 0
    for model, images in calls:
        assert [image.shape for image in images] == [(3, 64, 96)] * 3
        assert all(torch.equal(image, images[0]) for image in images)
        assert model.roi_heads.detections_per_img == 4


class Roofline:
    macs = bytes = 1e9
