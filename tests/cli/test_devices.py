"""A GPU that is not there, and what is no device, at every command that takes one."""

import pytest
import torch

from norton_det.cli.main import main

COMMANDS = {
    "agreement": ["a.pth", "b.pth", "--images", "photos", "--device", "{}"],
    "train": ["--config", "quickstart.yaml", "device={}"],
    "benchmark": ["--config", "quickstart.yaml", "--device", "{}"],
    "finetune-backbone": ["--weights", "w.pth", "--data", "data", "--device", "{}"],
    "image": ["--weights", "w.pth", "--input", "a.png", "--output", "pictures", "--device", "{}"],
    "video": ["--weights", "w.pth", "--output", "clip.mp4", "--device", "{}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", "device: 'cuda:0' is not there; 0 GPUs were found"),
        ("cuda:7", "device: 'cuda:7' is not there; 0 GPUs were found"),
        ("cuda:999", "device: 'cuda:999' is not there; 0 GPUs were found"),
        ("gpu", "device: 'gpu' is not auto, cpu, cuda or cuda:N"),
        ("meta", "device: 'meta' is not auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(command, device, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([command, *(word.format(device) for word in COMMANDS[command])]) == 2
    assert capsys.readouterr().err.strip() == f"norton-det {command}: {told}"
    assert list(tmp_path.iterdir()) == []
