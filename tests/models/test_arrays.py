"""Pickles of NumPy's arrays, and those that would do something else."""

import builtins
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import norton_det
from norton_det.models.arrays import load_arrays

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "the other bytes first": np.arange(6, dtype=">i4"),
    "half": np.ones((1, 2, 1), dtype=np.float16),
    "booleans": np.array([True, False]),
    "a number": np.array(7),
    "nothing": np.zeros((0, 4), dtype=np.float32),
}


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_come_back_as_they_were(protocol, tmp_path):
    content = OrderedDict(model=ARRAYS, __author__="nobody", more=[1, 2.5, None, (True, "text")])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_arrays(tmp_path / "a.pkl")
    assert found["__author__"] == "nobody"
    assert found["more"] == [1, 2.5, None, [True, "text"]]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found["model"][name], array)
        assert found["model"][name].dtype.kind == array.dtype.kind


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def attacks(trace):
    command = f"touch {trace}"
    return {
        "a command": Attack(os.system, command),
        "evaluated text": Attack(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "an import": Attack(builtins.__import__, "os"),
        "an attribute of what is allowed": Attack(getattr, OrderedDict, "fromkeys"),
        "objects in an array": np.array([Attack(os.system, command)], dtype=object),
        "fields in an array": np.zeros(2, dtype=[("a", "f4")]),
        "text in an array": np.array(["text"]),
        "a memory map": Attack(np.memmap, str(trace), "float32", "w+", 0, (4,)),
        "a file of NumPy's": Attack(np.load, str(trace)),
        "a scalar": np.float32(3),
        "a set": {1, 2},
    }


@pytest.mark.parametrize("kind", attacks("trace"))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_whatever_is_no_array_is_refused_and_does_not_run(kind, protocol, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "attack.pkl"
    content = {"model": {"backbone.bottom_up.stem.conv1.weight": attacks(trace)[kind]}}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=r"^.*attack\.pkl: not a pickle of arrays that can be read safely: .+$"):
        norton_det.load_detector(path)
    assert not trace.exists()


def raw(*parts):
    return b"".join(parts)


HAND_MADE = {
    "a name with dots": raw(b"\x80\x04", b"\x8c\x05numpy", b"\x8c\x0ddtype.__new__", b"\x93."),
    "an old instance": raw(b"(ios\nsystem\n."),
    "a persistent id": raw(b"P0\n."),
    "an extension": raw(b"\x80\x02\x82\x01."),
    "a place in memory beyond all": raw(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "more bytes than there are": raw(b"\x80\x04\x8e", (2**60).to_bytes(8, "little"), b"few."),
    "an array larger than its bytes": raw(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1000000000000\nt",
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'few!'\ntb.",
    ),
    "nothing": b"",
    "no pickle": b"not a pickle",
}


@pytest.mark.parametrize("kind", HAND_MADE)
def test_what_no_writer_makes_is_refused(kind, tmp_path):
    (tmp_path / "odd.pkl").write_bytes(HAND_MADE[kind])
    with pytest.raises(ValueError, match=r"odd\.pkl: not a pickle of arrays that can be read safely"):
        load_arrays(tmp_path / "odd.pkl")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path):
    whole = pickle.dumps({"model": ARRAYS}, protocol=2)
    (tmp_path / "cut.pkl").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.pkl: not a pickle"):
        load_arrays(tmp_path / "cut.pkl")
