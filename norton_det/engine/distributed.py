"""Wraps torch.distributed thinly, so that a plain process and one started by torchrun run the same code."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long processes wait for one that works alone for long; elsewhere torch's own limit of minutes counts."""
_patient: Any = None


def find_device(name: str) -> torch.device:
    """Return the device that `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N` names for this process.

    Raises ValueError for another name and for a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if not known:
        raise ValueError(f"device: {name!r} is not auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device(name)
    number = int(known[1] or local_rank())
    if number >= torch.cuda.device_count():
        raise ValueError(f"device: 'cuda:{number}' is not there; {torch.cuda.device_count()} GPUs were found")
    return torch.device("cuda", number)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started, if any, and leave them at the end.

    Raises ConnectionError if one of them ends too early.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL puts what `gather` exchanges there
    global _patient
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise ConnectionError(
            f"another of the {world_size()} processes ended; --resume goes on from the last checkpoint ({error})"
        ) from None
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Tell whether this is the process that writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """Return this process's number on its machine: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def parallel(model: nn.Module) -> nn.Module:
    """Return the model wrapped for training by all processes together: gradients are averaged over them."""
    return DistributedDataParallel(model) if world_size() > 1 else model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself from what `parallel` returned."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def gradients(model: nn.Module, *, shared: bool) -> AbstractContextManager[None]:
    """Return a context for forward and backward passes: `shared` gradients are averaged over the processes, others
    stay in each process for now."""
    return nullcontext() if shared or not isinstance(model, DistributedDataParallel) else model.no_sync()


def wait_for_all() -> None:
    """Wait until every process has come here, however long one of them works alone first."""
    if world_size() > 1:
        dist.barrier(_patient)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Copy the main process's tensors into those of every process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather(value: T) -> list[T]:
    """Return on every process the values of all processes, in the order of their ranks."""
    values: list[T | None] = [None] * world_size()
    if world_size() == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def largest(*values: int) -> list[int]:
    """Return on every process the largest of each value over the processes."""
    if world_size() == 1:
        return list(values)
    shared = torch.tensor(values, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return [int(value) for value in shared]


def mean(values: dict[str, float]) -> dict[str, float]:
    """Return on every process the mean of each value over the processes, whose values must have the same names."""
    parts = gather(values)
    return {name: sum(part[name] for part in parts) / len(parts) for name in values}
