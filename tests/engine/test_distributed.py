"""What processes tell each other, between two of them; and which device a name stands for."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from norton_det.engine import distributed


def exchange(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tensor = torch.full((2,), float(rank))
    distributed.share([tensor])
    found = {
        "largest": distributed.largest(rank, 5 - rank),
        "mean": distributed.mean({"loss": rank + 1.0}),
        "gather": distributed.gather("ab"[rank]),
        "share": tensor.tolist(),
        "is_main": distributed.is_main(),
    }
    results.put((rank, found))
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=exchange, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    agreed = {"largest": [1, 5], "mean": {"loss": 1.5}, "gather": ["a", "b"], "share": [0, 0]}
    assert found == {rank: {**agreed, "is_main": rank == 0} for rank in range(2)}


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
