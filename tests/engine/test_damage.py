import pytest
from processes import in_two_processes

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


def one_of_two(rank):
    mine = [["a"], [], ["b"], ["a", "c"]] if rank else [["b"], ["a"], [], []]
    seen = []
    try:
        for batch in within_limit(list(enumerate(mine)), 2):
            seen.append(batch)
    except ValueError as error:
        return seen, str(error)


def test_two_processes_count_together_and_stop_together(tmp_path):
    found = in_two_processes(one_of_two, tmp_path)
    assert found == [([0, 1, 2], "c: damaged images met: 3, tolerated: 2")] * 2
