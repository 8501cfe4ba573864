"""Categories of a detector and of data are matched by name."""

import pytest

from norton_det.data.catalog import Categories
from norton_det.data.matching import match, seen_by

BACKGROUND = "__background__"


def categories(*pairs: tuple[int, str]) -> Categories:
    return Categories((BACKGROUND, *(name for _, name in pairs)), (0, *(id for id, _ in pairs)))


KNOWN = categories((1, "cat"), (2, "N/A"), (3, "dog"), (9, "hen"))


@pytest.mark.parametrize(
    ("data", "labels", "unknown", "absent"),
    [
        (KNOWN, {1: 1, 3: 3, 4: 4}, (), ()),
        (categories((1, "dog"), (2, "hen"), (3, "cat")), {1: 3, 2: 4, 3: 1}, (), ()),
        (categories((1, "cat")), {1: 1}, (), ("dog", "hen")),
        (categories((1, "cow"), (9, "hen")), {2: 4}, ("cow",), ("cat", "dog")),
    ],
)
def test_names_decide_not_ids(
    data: Categories, labels: dict[int, int], unknown: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    matching = match(KNOWN, data)
    assert (matching.labels, matching.unknown, matching.absent) == (labels, unknown, absent)
    seen = seen_by(KNOWN, data, matching)
    assert len(seen.names) == len(KNOWN.names)
    assert seen.labels == {data.ids[ours]: theirs for ours, theirs in labels.items()}
    assert all(seen.names[theirs] == data.names[ours] for ours, theirs in labels.items())


def test_of_one_name_twice_the_ids_decide() -> None:
    known = categories((0, "cells"), (1, "cells"))
    assert match(known, known).labels == {1: 1, 2: 2}
    assert match(known, categories((1, "cells"))).labels == {1: 2}


def test_what_differs_is_told_by_name() -> None:
    matching = match(KNOWN, categories((1, "cow"), (9, "hen")))
    assert matching.told("val.json", "the detector") == (
        "categories differ: the detector lacks cow; val.json lacks cat, dog"
    )
    many = match(categories((1, "a")), categories(*((i, f"n{i}") for i in range(1, 12))))
    assert "n8 and 3 more;" in many.told("val.json", "the detector")
