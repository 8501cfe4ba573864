"""Which parts stay in floating point, on a machine whose parts are known."""

from norton_det.shrink.quantising import Seen, leave_out

COSTS = {"stem": 5.0, "body": 1.0, "neck": 2.0, "head": 0.1}
"""Points that int8 costs in each part."""
SAVES = {"stem": 0.02, "body": 0.4, "neck": 0.05, "head": 0.05}
"""Time that it saves there."""


def with_parts(parts):
    time = 1 + sum(SAVES[part] for part in parts)
    return Seen(time, 100 - sum(COSTS.values()) + sum(COSTS[part] for part in parts))


def test_parts_whose_int8_costs_more_than_it_saves_stay_in_floating_point():
    alone, left, chosen = leave_out([*COSTS], with_parts([]), with_parts)
    assert left == ("stem", "neck")
    assert chosen == with_parts(left)
    assert alone == {part: with_parts([part]) for part in COSTS}


def test_a_part_that_gains_nothing_beside_those_that_are_left_out_is_not_left_out():
    def overlapping(parts):  # whichever of two is left out, the harm is gone
        gain = 5.0 if set(parts) & {"stem", "neck"} else 0.0
        return Seen(1 + 0.05 * len(parts), 90 + gain)

    _, left, chosen = leave_out(["stem", "neck"], overlapping([]), overlapping)
    assert len(left) == 1 and chosen == overlapping(left)


def test_nothing_is_left_out_where_int8_costs_nothing():
    quantised = Seen(1.0, 100.0)
    _, left, chosen = leave_out(["stem", "body"], quantised, lambda parts: Seen(1 + 0.1 * len(parts), 100.0))
    assert (left, chosen) == ((), quantised)
