"""Describes in a line what a measurement was made on."""

import os
import platform
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instruction sets that decide how fast the precisions are, by their names in Linux."""
LIMIT = "ONEDNN_MAX_CPU_ISA"
"""oneDNN, which computes for torch and OpenVINO, uses no more than this variable allows."""


def describe_machine(device: torch.device) -> str:
    """Return the GPU's name; or the CPU's, its instruction sets that matter, and how many threads torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    fields: dict[str, str] = {}
    for line in CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    units = " ".join(unit for unit in UNITS if unit in flags)
    limit = f"{LIMIT}={os.environ[LIMIT]}" if LIMIT in os.environ else ""
    parts = (fields.get("model name") or platform.processor(), units, limit, f"{torch.get_num_threads()} threads")
    return ", ".join(part for part in parts if part)
