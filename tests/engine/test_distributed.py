"""What processes tell each other, between two of them; and which device a name stands for."""

import multiprocessing
import os
import socket
import time
from datetime import timedelta

import pytest
import torch
from processes import in_two_processes

from norton_det.engine import distributed

LITTLE = timedelta(seconds=2)
"""How long torch waits."""


def exchange(rank):
    tensor = torch.full((2,), float(rank))
    distributed.broadcast([tensor])
    return {
        "largest": distributed.largest(rank, 5 - rank),
        "mean": distributed.mean({"loss": rank + 1.0}),
        "gather": distributed.gather("ab"[rank]),
        "share": tensor.tolist(),
        "is_main": distributed.is_main(),
    }


def test_two_processes_agree(tmp_path):
    agreed = {"largest": [1, 5], "mean": {"loss": 1.5}, "gather": ["a", "b"], "share": [0, 0]}
    assert in_two_processes(exchange, tmp_path) == [{**agreed, "is_main": rank == 0} for rank in range(2)]


def patient(rank, place, answers):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(place), WORLD_SIZE="2", RANK=str(rank))
    with distributed.process_group(torch.device("cpu")):
        if rank == 0:
            time.sleep(3 * LITTLE.total_seconds())
        distributed.wait_for_all()
        answers.put(distributed.gather(rank))


def test_processes_wait_for_one_that_works_alone_for_longer_than_torch_would_wait(monkeypatch):
    init = torch.distributed.init_process_group
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: init(backend, timeout=LITTLE))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = free.getsockname()[1]
    processes = [fork.Process(target=patient, args=(rank, place, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [[0, 1], [0, 1]]
    for process in processes:
        process.join()


def test_one_process_agrees_with_itself():
    assert distributed.largest(3, 0) == [3, 0]
    assert distributed.mean({"loss": 2.0}) == {"loss": 2}
    assert distributed.gather("a") == ["a"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_gpu_that_is_not_there_is_refused(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"'cuda:{count}' is not there; {count} GPUs were found"):
        distributed.find_device(f"cuda:{count}")
    if count:
        assert distributed.find_device("cuda:0") == torch.device("cuda", 0)
