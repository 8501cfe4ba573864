"""The search-plan command as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from detectors import tiny_classifier, tiny_detector

import norton_det
from norton_det.cli.main import main
from norton_det.compression.plan import load_plan
from norton_det.compression.search import plan_search as search
from norton_det.compression.search.body_sensitivities import Sensitivities
from norton_det.compression.search.options import RATES, block_options, pruned_stages
from norton_det.data.images import write_png
from norton_det.models.channels import read_body
from norton_det.models.persistence import save_weights


def foretold(model, *_, **__):
    """Sensitivities as if measured, which takes its time and has its own tests."""
    body = read_body(model)
    return Sensitivities(
        {
            block.name: [0.1 / (rank or 9) + rate for rank, rate in block_options(body, block)]
            for block in body.blocks
        },
        {stage: list(RATES) for stage in pruned_stages(body)},
    )


@pytest.fixture(autouse=True)
def weights_and_images(in_an_empty_folder, monkeypatch):
    monkeypatch.setattr(search, "measure_sensitivities", foretold)
    save_weights(Path("dense.pth"), tiny_classifier("resnet50"))
    Path("images").mkdir()
    for number in range(3):
        write_png(Path(f"images/{number}.png"), torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8))


def search_plan(*words, images="images", budget="macs=0.6", output="plans/plan.json"):
    required = ["--weights", "dense.pth", "--images", images, "--budget", budget, "--output", output]
    return main(["search-plan", *required, *words])


def test_a_plan_file_is_written_and_used_by_its_name(capsys):
    assert search_plan("--image-count", "2") == 0
    printed = capsys.readouterr().out
    assert "layer4.2" in printed and "predicted error" in printed and "macs:" in printed
    plan = load_plan("plans/plan.json", read_body(tiny_classifier("resnet50")))
    assert plan.rates or plan.ranks
    assert [path.name for path in Path("plans").iterdir()] == ["plan.json"]
    assert main(["compress", "--weights", "dense.pth", "--plan", "plans/plan.json", "--output", "small.pth"]) == 0
    report = json.loads(Path("small.json").read_text())["layers"]
    ranks = {layer["name"]: layer["rank"] for layer in report if layer["rank"]}
    assert ranks == plan.ranks
    norton_det.load_resnet("small.pth")
    capsys.readouterr()
    assert search_plan("--weights", "small.pth") == 2
    assert "small.pth is compressed already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"budget": "macs=0.01"}, "budget macs=0.01 is impossible: the smallest is macs=0."),
        ({"budget": "watts=5"}, "expected macs=NUMBER or parameters=NUMBER or milliseconds=NUMBER"),
        ({"images": "nowhere"}, "'nowhere' is neither a folder nor"),
        ({"images": "."}, "no images (.jpg"),
        ({"output": "plan.pth"}, "a plan is a .json file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys):
    assert search_plan(**words) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message
    assert not Path("plans").exists()


def test_a_classifier_is_no_detector(capsys):
    assert search_plan("--whole-detector") == 2
    assert "a classifier's" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "body"), [("fcos", "resnet18"), ("faster_rcnn", "resnext50_32x4d")])
def test_a_detector_of_any_kind_and_body_gets_a_plan(kind, body, capsys):
    save_weights(Path("dense.pth"), tiny_detector(kind, body))
    assert search_plan("--input-size", "64", "64", budget="parameters=0.9") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    blocks = read_body(tiny_detector(kind, body)).blocks
    assert [row[0] for row in rows if row[0].startswith("layer") and row[1] != "output"] == [b.name for b in blocks]
    assert main(["compress", "--weights", "dense.pth", "--plan", "plans/plan.json", "--output", "small.pth"]) == 0
    norton_det.load_detector("small.pth")
