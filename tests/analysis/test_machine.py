"""The line that says what a measurement was made on."""

import torch

from norton_det.analysis import machine
from norton_det.analysis.machine import describe_machine

CPU_INFO = """processor\t: 0
model name\t: A CPU @ 2 GHz
flags\t\t: fpu amx_int8 avx2 avx512_vnni sse
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_name_instruction_sets_limit_and_threads(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPU_INFO)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert describe_machine(torch.device("cpu")) == "A CPU @ 2 GHz, avx2 avx512_vnni amx_int8, 3 threads"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "amx_int8, ONEDNN_MAX_CPU_ISA=AVX2, 3" in describe_machine(torch.device("cpu"))


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    assert describe_machine(torch.device("cpu")).startswith("arm, ")
