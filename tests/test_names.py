"""Names in messages."""

from norton_det.names import did_you_mean, some


def test_the_nearest_name_is_asked_for_and_none_where_none_is_like_it():
    assert did_you_mean("train.lrr", ["train.momentum", "train.lr"]) == "; did you mean 'train.lr'?"
    assert did_you_mean("watts", ["train.lr"]) == ""


def test_of_many_names_the_first_are_told_and_how_many_more_there_are():
    assert some(["a", "b"], 2) == "a, b"
    assert some(list("abcde"), 2) == "a, b and 3 more"
