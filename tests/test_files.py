import json
import math
import os
from pathlib import Path

import pytest

from norton_det.files import atomic_path, write_json


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_success_replaces_the_file_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.onnx"
    for text in ("first", "second"):
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".onnx" and temporary.parent == path.parent and temporary != path
            temporary.write_text(text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["model.onnx"]


def test_json_has_null_for_what_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": math.nan, "all": [math.inf, (1.5, -math.inf)], "name": "ä"})
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "AP": None,
        "all": [None, [1.5, None]],
        "name": "ä",
    }


def test_what_json_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert os.listdir(tmp_path) == []
