"""Reads pickles of NumPy arrays without running anything of them.

Whatever a pickle may call is replaced by classes of this module, one for an array and one for its type, which take
the numbers from the bytes themselves.
"""

import io
import pickle
import pickletools
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = "fiub"
"""The letters of NumPy's types that are read: floating point, integers, and booleans; never objects."""
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|NONE|NEWTRUE|NEWFALSE|(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(STRING|UNICODE)8?|"
    "(SHORT_)?BINBYTES8?|(EMPTY_)?(DICT|LIST|TUPLE)[123]?|SETITEMS?|APPENDS?|((LONG_)?BIN)?(GET|PUT)|MEMOIZE|"
    "(STACK_)?GLOBAL|REDUCE|BUILD"
)
"""The opcodes that a pickle of arrays consists of."""


def load_arrays(path: str | Path) -> Any:
    """Load what a pickle says: NumPy arrays of numbers within lists, tuples, dictionaries, text and numbers.

    Raises ValueError naming the file where it is damaged or holds anything else.
    """
    content = Path(path).read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if not _OPCODES.fullmatch(opcode.name):
                raise ValueError(f"{opcode.name} is no part of a pickle of arrays")
            if "PUT" in opcode.name and int(argument or 0) > len(content):
                raise ValueError("its memo has more places than it has bytes")
        return _as_arrays(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except Exception as error:  # damage may raise anything
        told, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: not a pickle of arrays that can be read safely: {told[:200]}") from None


class _Type:
    """Describes a NumPy type by its name, such as `f4`, and its byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or len(name) > 3 or name[:1] not in _KINDS or not name[1:].isdigit():
            raise ValueError(f"arrays of {name!r}, expected numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "="}[state[1]]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.name)


class _Array:
    """Builds an array from its shape, type, order of axes and bytes, which are checked against each other."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray[Any, Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an array without a shape or a type")
        content = content.encode("latin1") if isinstance(content, str) else content
        values = np.frombuffer(content, kind.dtype)
        self.values = values.reshape(shape, order="F" if is_fortran else "C").astype(kind.dtype.newbyteorder("="))


def _encode(text: str, encoding: str) -> bytes:
    """Encode text as bytes: pickles that old Pythons can read hold bytes so."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}, expected latin1")
    return text.encode("latin1")


_CALLABLE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # of an array without values
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLABLE:
            raise ValueError(f"it asks for {module}.{name}")
        return _CALLABLE[module, name]


def _as_arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _as_arrays(item) for key, item in value.items()}
    return [_as_arrays(item) for item in value] if isinstance(value, list | tuple) else value
