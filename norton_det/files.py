"""Writes files whole or not at all, and reads them without trust."""

import hashlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` on success and removed on failure.

    It has the suffix of `path`, for writers that choose the format by it. Missing folders are made. Where a writer's
    OSError does not say which file it meant, the error is raised anew and names `path`.

        with atomic_path(Path("model.pth")) as temporary:
            torch.save(weights, temporary)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value, indent=indent) + "\n", encoding="utf-8")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that any reader takes; NaN and the infinities, which JSON lacks, become null."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False, ensure_ascii=False)


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256 as text, which tells its content from any other's."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_path(path: Path) -> Path:
    """Return the first of `name-1.suffix`, `name-2.suffix` and so on that does not exist."""
    paths = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain types as `torch.save` does, atomically.

    Raises OSError, which names the path, where it cannot be written, as on a full disk.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's writer hides the file's error
                raise error.__context__ from None
            raise


def load_tensors(path: str | Path) -> Any:
    """Load what `torch.save` wrote to the CPU: tensors and plain types only; checksums are compared, no code is run.

    Raises ValueError naming the file where it is damaged or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch's reader does not look
                    raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage may raise anything
        told, *_ = str(error).strip().splitlines() or [type(error).__name__]
        if not isinstance(error, (OSError, ValueError, RuntimeError)):  # others say nothing, or advise to be unsafe
            told = "it is not one, or it holds more than tensors and plain types"
        raise ValueError(f"{path}: not a weights file that can be read safely: {told[:200]}") from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
