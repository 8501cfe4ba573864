import multiprocessing

import pytest
import torch.distributed as dist

from norton_det.engine.damage import within_limit


def test_each_damaged_image_is_told_and_counted_once(caplog):
    batches = [(0, []), (1, ["a", "b", "a"]), (2, ["b"]), (3, ["a"])]
    assert list(within_limit(batches, 2)) == [0, 1, 2, 3]
    assert caplog.messages == [f"{line}: another image takes its place" for line in "ab"]


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_one_more_than_the_limit_is_an_error(limit):
    batches = within_limit([(n, [str(n)]) for n in range(5)], limit)
    for n in range(limit):
        assert next(batches) == n
    with pytest.raises(ValueError, match=f"^{limit}: damaged images met: {limit + 1}, tolerated: {limit}$"):
        next(batches)


def one_of_two(rank, place, answers):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    mine = [["a"], [], ["b"], ["a", "c"]] if rank else [["b"], ["a"], [], []]
    seen = []
    try:
        for batch in within_limit(list(enumerate(mine)), 2):
            seen.append(batch)
    except ValueError as error:
        answers.put((seen, str(error)))


def test_two_processes_count_together_and_stop_together(tmp_path):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    processes = [fork.Process(target=one_of_two, args=(rank, tmp_path / "meet", answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [([0, 1, 2], "c: damaged images met: 3, tolerated: 2")] * 2
