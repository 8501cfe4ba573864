"""The page on Detectron2 says what happens, to a tiny detector with random weights."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest
from of_detectron2 import as_tensor, picture, write_config, write_pkl
from PIL import Image

import norton_det
from norton_det.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/detectron2.md"
SIZES = ((97, 131), (150, 110), (120, 90), (128, 128))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pkl(tmp_path / "model_final.pkl")
    write_config(tmp_path / "config.yaml")
    (tmp_path / "names.json").write_text(json.dumps(["ant", "bee", "cat", "dog", "emu"]))
    (tmp_path / "photos").mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(picture(*size)).save(tmp_path / f"photos/{number}.png")
    return tmp_path


def test_the_page_happens(folder):
    pytest.importorskip("onnxruntime")
    text = PAGE.read_text()
    code = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    page = doctest.DocTestParser().get_doctest(
        code, {"photos": [as_tensor(picture(*size)) for size in SIZES]}, "page", str(PAGE), 0
    )
    assert doctest.DocTestRunner().run(page).failed == 0
    commands = re.findall(r"^    norton-det (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["compress", "export-model", "shrink"]
    compress, export, _ = map(shlex.split, commands)
    assert main([*compress, "--steps", "1"]) == 0
    assert main(export) == 0
    small, exported = (norton_det.load_detector(name) for name in ("small.pth", "small.onnx"))
    assert small.categories == exported.categories == ["__background__", "ant", "bee", "cat", "dog", "emu"]
    image = as_tensor(picture(*SIZES[0]))
    assert norton_det.parity(exported([image]), small([image])).is_equal
