"""Files of attackers at the commands that take them: one line that names the file, exit code 2, and nothing runs."""

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from norton_det.cli.main import main

TRACE = "pwned"


class Payload:
    """A pickle that would leave a file behind, were it ever unpickled."""

    def __reduce__(self):
        return (os.mkdir, (TRACE,))


def weights_with_a_payload():
    torch.save({"model": {"conv1.weight": torch.ones(1)}, "payload": Payload()}, "attack.pth")


def yaml_with_a_tag():
    Path("attack.yaml").write_text(f"output_dir: !!python/object/apply:os.mkdir [{TRACE}]\n")


def annotations_that_leave_the_folder():
    image = {"id": 1, "file_name": "../secret.png", "width": 9, "height": 9}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    Path("attack.json").write_text(json.dumps(content))
    Path("photos").mkdir()


def decompression_bomb():
    """An image in COCO's format whose few bytes say that they are 40,000 x 30,000 pixels."""
    annotations_that_leave_the_folder()
    content = json.loads(Path("attack.json").read_text())
    content["images"][0] |= {"file_name": "bomb.png", "width": 40_000, "height": 30_000}
    Path("attack.json").write_text(json.dumps(content))
    Image.new("L", (40, 30)).save("photos/bomb.png")
    bomb = bytearray(Path("photos/bomb.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 40_000, 30_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    Path("photos/bomb.png").write_bytes(bomb)


OWN = "{images: photos, annotations: attack.json}"
TRAIN = ["train", "--config", "quickstart.yaml", "model.width=0.125", f"data.train={OWN}", f"data.test={OWN}"]


@pytest.mark.parametrize(
    ("attack", "words", "told"),
    [
        (weights_with_a_payload, ["compress", "--weights", "attack.pth", "--plan", "norton-77", "--output", "o.pth"],
         "attack.pth: not a weights file that can be read safely: "),
        (yaml_with_a_tag, ["train", "--config", "attack.yaml"], "attack.yaml: cannot be read as YAML: "),
        (annotations_that_leave_the_folder, TRAIN, "attack.json: image 1: the path '../secret.png' leads out of"),
        (decompression_bomb, TRAIN, "photos/bomb.png: not a readable image (Image size (1200000000 pixels) exceeds"),
    ],
)  # fmt: skip
def test_an_attack_is_one_line(attack, words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    attack()
    assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"norton-det {words[0]}: {told}")
    assert not Path(TRACE).exists()
