"""Two processes that work together, as the tests of what is between them need."""

import multiprocessing

import torch.distributed as dist


def in_two_processes(function, folder):
    """What `function(rank)` returns in either of two processes that gloo joins, in the order of their ranks."""
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    processes = [fork.Process(target=_joined, args=(function, rank, folder / "store", answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(2)]


def _joined(function, rank, store, answers):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    answers.put((rank, function(rank)))
    dist.destroy_process_group()
