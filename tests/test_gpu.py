"""What must hold on a GPU as it does on a CPU; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from detectors import ALL_KINDS, tiny_classifier, tiny_detector
from torch import nn

import norton_det
from norton_det.cli.main import main
from norton_det.compression.compress import compress
from norton_det.compression.plan import load_plan
from norton_det.compression.recover import compress_and_recover, recover
from norton_det.compression.search import budget as budgets
from norton_det.compression.search.budget import Budget
from norton_det.compression.search.plan_search import measure_sensitivities, search_plan
from norton_det.data.shapes import write_shapes
from norton_det.deploy import graphs
from norton_det.deploy.parity import parity
from norton_det.deploy.treatments import usable_treatments
from norton_det.layers.cp_conv import FORMS, CPConv2d
from norton_det.models.channels import read_body
from norton_det.models.parts import dense_head
from norton_det.models.persistence import save_weights
from norton_det.models.settings import write_settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0)
PLAN = {"notation": "[0.]+[0.2]*19", "rank": 2, "parts": {"neck": 1, "rpn": 1, "box_head": 8}}
SPREADS = {"bbox_pred": 0.004, "cls_logits": 0.004, "cls_score": 0.1, "bbox_reg": 0.004}
WORDS = [
    *("--config", "quickstart.yaml", "model.width=0.125", "model.min_size=[64, 96]", "model.max_size=128"),
    *("model.fpn_channels=16", "model.box_channels=32", "model.train_proposals=50", "model.test_proposals=50"),
    *("train.batch_size=4", "train.max_iterations=6", "train.log_period=1", "train.warmup_iterations=0"),
    *("test.batch_size=2", "test.score_threshold=0", "train.checkpoint_period=3", "device=cuda"),
]


@pytest.fixture(autouse=True)
def rounded_as_on_a_cpu(monkeypatch):
    """Convolutions in float32, not TF32: only the order of sums may differ."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, 8, 8 + i % 3, generator=generator) for i in range(9)]
    return [nn.functional.interpolate(image, scale_factor=12, mode="bilinear")[0] for image in coarse]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train_images=12, val_images=5)
    return root


@pytest.fixture
def in_a_folder(datasets, tmp_path, monkeypatch):
    monkeypatch.setenv("NORTON_DATASETS", str(datasets))
    monkeypatch.chdir(tmp_path)


def detector(kind):
    """Small regressions and scores that lie apart, so that rounding does not choose detections."""
    built = tiny_detector(kind, classes=4, channels=64)
    few = {"min_size": (96,), "max_size": 160}
    if hasattr(built, "rpn"):
        anchors = {"sizes": [[8], [16], [32], [64], [128]], "aspect_ratios": [[0.5, 1.0, 2.0]] * 5}
        few |= {"rpn_post_nms_top_n_test": 30, "rpn_anchor_generator": anchors}
    else:
        few |= {"topk_candidates": 40, "detections_per_img": 30}
    write_settings(built, few)
    for name, module in built.named_modules():
        if name.split(".")[-1] in SPREADS and hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=SPREADS[name.split(".")[-1]])
    if kind == "fcos":
        nn.init.ones_(built.head.regression_head.bbox_reg.bias)
    built.categories, built.category_ids = ["__background__", "a", "b", "c"], [0, 1, 2, 4]
    return built


def train(output, *words):
    return main(["train", *WORDS, *words, f"output_dir={output}"])


def weights(folder):
    return torch.load(Path(folder, "model_final.pth"), weights_only=True)["model"]


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_and_its_gradients_are_the_cpus(form):
    torch.manual_seed(0)
    layer = CPConv2d(12, 8, 3, 3, stride=2, padding=1, form=form)
    x = torch.randn(2, 12, 11, 9).to(memory_format=torch.channels_last)
    found = []
    for device in ("cpu", GPU):
        here, inputs = layer.to(device), x.detach().to(device).requires_grad_()
        here.zero_grad()
        y = here(inputs)
        y.square().sum().backward()
        found.append([tensor.detach().cpu() for tensor in (y, inputs.grad, *(p.grad for p in here.parameters()))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_optimised_detector_finds_what_it_found(kind, images):
    compressed, _ = norton_det.compress(detector(kind), PLAN)
    expected = compressed(images)
    pictures = [image.to(GPU) for image in images]
    for ours, theirs in zip(norton_det.optimize(compressed.to(GPU), pictures)(pictures), expected, strict=True):
        assert ours["boxes"].is_cuda and len(theirs["boxes"])
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), value, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_what_is_replayed_is_what_ran(kind, monkeypatch):
    """Shapes in turn: each runs by itself, is recorded, is replayed; a third one stays as it is."""
    monkeypatch.setattr(graphs, "MOST", 2)
    generator = torch.Generator().manual_seed(2)
    sizes = ((96, 96), (96, 150), (150, 96))
    pictures = [torch.rand(2, 3, *size, generator=generator).to(GPU) for size in sizes]
    fast = norton_det.optimize(detector(kind).to(GPU), [pictures[0][0]])
    expected = [fast(list(pair)) for pair in pictures]
    assert not fast.detector.backbone.body.forward._recordings
    for pair, found in [*zip(pictures, expected, strict=True)] * 3:
        for ours, theirs in zip(fast(list(pair.flip(0))), reversed(found), strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value)
    for network in (fast.detector.backbone.body, fast.detector.backbone.fpn, dense_head(fast.detector)):
        assert len(network.forward._recordings) == 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_finds_almost_the_same(precision, images):
    pictures = [image.to(GPU) for image in images]
    model = detector("mask_rcnn").to(GPU)
    exact, low = (norton_det.optimize(model, pictures, precision=p)(pictures) for p in ("float32", precision))
    moved = parity(low, exact)
    assert moved.found > 0.5 * moved.expected > 0
    assert moved.box_median < 2


def test_recovery_restores_as_on_a_cpu(images):
    dense = tiny_classifier(classes=4)
    compressed, report = compress(dense, load_plan(PLAN, read_body(dense)))
    ours, theirs = (
        recover(copy.to(device), dense, images, report.kept, steps=10)
        for copy, device in ((compressed, "cpu"), (compressed, GPU))
    )
    assert next(theirs[0].parameters()).is_cuda
    for here, there in zip(ours[1], theirs[1], strict=True):
        assert there.before == pytest.approx(here.before, rel=0.1, abs=1e-3)
        assert there.after == pytest.approx(here.after, rel=0.2, abs=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_detector_is_restored_on_the_gpu_and_comes_back(kind, share, images):
    dense = detector(kind)
    plan = load_plan(PLAN, read_body(dense))
    restored, report = compress_and_recover(dense, plan, images, steps=3, share=share, device=GPU)
    assert not next(restored.parameters()).is_cuda and not next(dense.parameters()).is_cuda
    heads = {"rpn", "box head"} if hasattr(dense, "rpn") else {"classification head", "regression head"}
    expected = {"neck", *heads}
    assert expected <= {part.name for part in report.recovery}
    assert all(part.after <= part.before for part in report.recovery)


def test_sensitivities_are_the_cpus(images):
    network = detector("mask_rcnn")
    ours = measure_sensitivities(network, images, whole_detector=True)
    theirs = measure_sensitivities(network.to(GPU), images, whole_detector=True)
    for kind in ("blocks", "stages", "parts"):
        for name, errors in getattr(ours, kind).items():
            assert getattr(theirs, kind)[name] == pytest.approx(errors, rel=0.1, abs=2e-3), name


def test_milliseconds_are_measured_on_the_gpu(images, monkeypatch):
    timed = []
    measure = budgets.static_milliseconds
    monkeypatch.setattr(budgets, "static_milliseconds", lambda *args: timed.append(args[2]) or measure(*args))
    network = tiny_classifier(classes=4).to(GPU)
    plan, report = search_plan(network, images, Budget("milliseconds", 1000.0))
    assert set(timed) == {GPU}
    assert 0 < report.cost <= 1000 and not plan.ranks


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_goes_on_and_its_weights_serve_a_cpu(precision):
    words = [f"train.precision={precision}", "train.ema=0.9", "model.recover_images=4", "data.workers=1"]
    assert train("whole", *words) == 0
    assert train("part", *words, "train.max_iterations=3") == 0
    assert train("part", *words, "--resume") == 0
    assert all(value.isfinite().all() for value in weights("whole").values())
    lines = [json.loads(line) for line in Path("part/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["gpu_memory"] > 0 for line in lines)
    assert train("cpu", "--eval-only", "device=cpu", "model.weights=whole/model_final.pth") == 0
    ours, theirs = (json.loads(Path(f"{run}/evaluation/metrics.json").read_text()) for run in ("cpu", "whole"))
    assert ours["bbox"]["AP"] == pytest.approx(theirs["bbox"]["AP"], abs=1)


@pytest.mark.usefixtures("in_a_folder")
def test_compressing_and_searching_take_the_gpu(capsys):
    save_weights(Path("dense.pth"), detector("faster_rcnn"))
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    images = ["--images", "shapes_train", "--image-count", "4"]
    found = ["search-plan", "--weights", "dense.pth", *images, "--budget", "milliseconds=1000"]
    assert main([*found, "--input-size", "96", "96", "--output", "plan.json"]) == 0
    assert torch.cuda.max_memory_allocated() > held
    torch.cuda.reset_peak_memory_stats()
    small = ["compress", "--weights", "dense.pth", "--plan", "norton-59", *images, "--steps", "2"]
    assert main([*small, "--output", "small.pth"]) == 0
    assert torch.cuda.max_memory_allocated() > held
    assert "part, restored" in capsys.readouterr().out
    norton_det.load_detector("small.pth")


@pytest.mark.usefixtures("in_a_folder")
def test_the_benchmark_measures_every_treatment(capsys):
    words = ["benchmark", *WORDS[:9], "--device", "cuda", "--runs", "2", "--input-size", "96", "128"]
    assert main([*words, "--json", "latencies.json"]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
    treatments = usable_treatments(GPU)
    assert "torch float16" in treatments and Path("latencies.png").exists()
    for model in json.loads(Path("latencies.json").read_text())["models"].values():
        assert list(model["treatments"]) == treatments
        assert all(row["median"] > 0 and row["peak_memory"] > 0 for row in model["treatments"].values())
