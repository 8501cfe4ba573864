"""A function of another module is itself again, whatever happens meanwhile."""

import json

import pytest

from norton_det.replacing import replaced


def test_a_replaced_function_is_itself_again_after_an_error():
    before = json.dumps
    with pytest.raises(KeyError), replaced(json, "dumps", repr):
        assert json.dumps is repr
        raise KeyError
    assert json.dumps is before


def test_a_method_that_is_replaced_on_an_object_is_its_classs_again():
    encoder = json.JSONEncoder()
    with replaced(encoder, "encode", repr):
        assert encoder.encode(()) == "()"
    assert encoder.encode(()) == "[]" and "encode" not in vars(encoder)
