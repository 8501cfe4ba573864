import json

import pytest
import torch
from detectors import tiny_classifier, tiny_detector
from torchvision.models import resnet50

from norton_det.cli import compare_decompositions as command
from norton_det.cli.compare_decompositions import format_results
from norton_det.cli.main import main
from norton_det.compression.comparison import METHODS, Measurement, resnet_convolutions
from norton_det.models.channels import read_body
from norton_det.models.weights import read_weights

QUICK = ["compare-decompositions", "--ranks", "1", "--runs", "1", "--input-size", "32"]


@pytest.fixture
def small_weights(tmp_path):
    """A file in float16 of a ResNet-18 that has the blocks' convolutions of its first stage only, 64 x 64 each."""
    state = tiny_classifier("resnet18", width=1.0).half().state_dict()
    lacking = [name for name in state if ".conv" in name and not name.startswith("layer1")]
    torch.save({name: tensor for name, tensor in state.items() if name not in lacking}, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_table_json_and_plot(small_weights, tmp_path, capsys):
    files = [tmp_path / "compare.json", tmp_path / "compare.png"]
    words = ["--weights", str(small_weights), "--layers", "layer1.1.conv2", "--json", str(files[0])]
    assert main([*QUICK, *words, "--plot", str(files[1])]) == 0
    table = capsys.readouterr().out
    assert "layer1.1.conv2: 64 x 64 x 3 x 3, stride 1, on 8 x 8" in table
    assert all(method in table for method in METHODS)
    content = json.loads(files[0].read_text())
    layer = content["layers"]["layer1.1.conv2"]
    assert (content["weights"], layer["input"]) == (str(small_weights), [1, 64, 8, 8])
    assert [row["method"] for row in layer["measurements"]] == list(METHODS)
    assert all(isinstance(row["macs"], int) for row in layer["measurements"])
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_each_layer_is_compared_as_the_options_say(tmp_path, monkeypatch, capsys):
    calls = []

    def compare(conv, ranks, image, *, runs, progress):
        last = image.is_contiguous(memory_format=torch.channels_last)
        calls.append((conv.weight.shape[0], ranks, image.shape[2:], last, runs))
        return [Measurement("dense", 0, (), 1, 0.0, 10, 20, 30, 0.5)]

    monkeypatch.setattr(command, "compare_decompositions", compare)
    words = ["--ranks", "2", "3", "--runs", "7", "--input-size", "64", "--json", str(tmp_path / "compare.json")]
    assert main(["compare-decompositions", *words, "--layers", "layer1.1.conv2", "layer3.0.conv2"]) == 0
    assert calls == [(64, [2, 3], (16, 16), True, 7), (256, [2, 3], (8, 8), True, 7)]
    layers = json.loads((tmp_path / "compare.json").read_text())["layers"]
    assert {name: layer["stride"] for name, layer in layers.items()} == {
        "layer1.1.conv2": [1, 1],
        "layer3.0.conv2": [2, 2],
    }
    assert f"/{2 * 2 * len(METHODS[1:])} " in capsys.readouterr().err


def test_the_table_has_each_number_in_its_unit_and_a_block_a_budget():
    measured = [
        Measurement("dense", 0, (), 1, 0.0, 36864, 9_000_000, 9_000_000, 1.25),
        Measurement("ours", 1, (1,), 3, 0.25, 4480, 1_500_000, 1_200_000, 0.75),
        Measurement("theirs", 1, (5, 6), 3, 0.5, 4400, 1_400_000, 1_400_000, 0.875),
        Measurement("ours", 2, (2,), 3, 0.125, 8960, 3_000_000, 2_400_000, 1.0),
    ]
    lines = format_results({"a layer": measured}).splitlines()
    assert [line.split() for line in lines[1:8]] == [
        [],
        ["a", "layer"],
        ["dense", "-", "1", "0.0000", "36,864", "9.0", "9.0", "1.25"],
        ["ours", "1", "3", "0.2500", "4,480", "1.5", "1.2", "0.75"],
        ["theirs", "5,", "6", "3", "0.5000", "4,400", "1.4", "1.4", "0.88"],
        [],
        ["ours", "2", "3", "0.1250", "8,960", "3.0", "2.4", "1.00"],
    ]


def test_random_weights_are_seeded(capsys):
    def errors(seed):
        assert main([*QUICK, "--layers", "layer1.0.conv2", "--seed", seed]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(METHODS)]
        return [row[:-9] for row in rows]  # without the latency

    first, again, other = errors("0"), errors("0"), errors("1")
    assert first == again != other


def test_random_weights_have_the_scale_of_torchvisions():
    name = "layer3.1.conv2"
    ours, _ = resnet_convolutions([name], None, 64)[name]
    torch.testing.assert_close(ours.weight.std(), resnet50().get_submodule(name).weight.std(), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", [None, "retinanet"])
@pytest.mark.parametrize("body", ["resnet18", "resnet50"])
@pytest.mark.parametrize("size", [224, 97])
def test_layers_and_what_they_read_are_the_networks(kind, body, size, tmp_path):
    network = tiny_classifier(body) if kind is None else tiny_detector(kind, body)
    torch.save(network.state_dict(), tmp_path / "dense.pth")
    names, shapes = read_body(network).spatial, {}
    resnet = network if kind is None else network.backbone.body
    for name in names:
        layer = resnet.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, x, name=name: shapes.update({name: x[0].shape}))
    resnet(torch.zeros(1, 3, size, size))
    found = resnet_convolutions(names, read_weights(tmp_path / "dense.pth"), size)
    assert {name: shape for name, (_, shape) in found.items()} == shapes
    for name, (conv, _) in found.items():
        theirs = resnet.get_submodule(name)
        assert torch.equal(conv.weight, theirs.weight)
        assert (conv.stride, conv.padding) == (theirs.stride, theirs.padding)


def test_filters_of_a_partial_file_are_the_files(real_filters, real_data):
    weights = read_weights(real_data / "weights" / "resnet50_imagenet_partial.pth")
    names = ["layer1.1.conv2", "layer3.1.conv2"]
    for name, (conv, _) in resnet_convolutions(names, weights, 64).items():
        assert torch.equal(conv.weight, real_filters[f"{name}.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "layer1.1.conv1"], "no 3x3 convolution layer1.1.conv1"),
        (["--ranks", "0"], "--ranks: at least 1, got 0"),
        (["--input-size", "16"], "--input-size: at least 32, got 16"),
        (["--runs", "0"], "--runs: at least 1, got 0"),
        (["--weights", "absent.pth"], "no weights file 'absent.pth'"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["compare-decompositions", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_layer_that_the_file_lacks_is_named(small_weights, capsys):
    assert main([*QUICK, "--weights", str(small_weights)]) == 2
    error = capsys.readouterr().err
    assert "no dense weights of layer2.1.conv2, layer3.1.conv2" in error
    assert "it has layer1.0.conv1, layer1.0.conv2, layer1.1.conv1, layer1.1.conv2" in error
