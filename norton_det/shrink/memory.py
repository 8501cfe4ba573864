"""Keeps measurements in a file as they are made, so that a later run goes on from there, also for another goal."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from norton_det.files import write_json

log = logging.getLogger(__name__)


class Memory:
    """Holds values of plain types by name, and a progress bar that shows how many of them are there.

    Attributes:
        folder: the folder of the values and of the files that belong to them.
        bar: the progress bar of a phase, with one step for each value.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bar = tqdm(desc="shrink", unit="step", total=0)
        self._path = folder / "state.json"
        self._values: dict[str, Any] = _read(self._path)

    def begin(self, phase: str) -> None:
        """Let the bar begin anew, for a phase of a name."""
        self.bar.set_description_str(phase, refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.reset(total=0)

    def expect(self, steps: int) -> None:
        """Tell the bar that `steps` further values will be asked for."""
        self.bar.total = (self.bar.total or 0) + steps
        self.bar.refresh()

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the value of a name, of plain types; measure and keep it if there is none yet."""
        self.bar.set_postfix_str(name)
        if name not in self._values:
            self.put(name, measure())
        self.bar.update()
        return self._values[name]

    def recall_apart(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a large value like `recall`; it lies in a file of its own."""
        self.bar.set_postfix_str(name)
        path = self.folder / f"{name}.json"
        value = _read(path)
        if not value:
            value = measure()
            write_json(path, value)
        self.bar.update()
        return value

    def get(self, name: str, otherwise: Any) -> Any:
        """Return the value of a name, or another one if there is none yet."""
        return self._values.get(name, otherwise)

    def put(self, name: str, value: Any) -> None:
        """Keep a value of plain types."""
        self._values[name] = value
        write_json(self._path, self._values, indent=1)

    def forget(self, name: str) -> None:
        """Drop a value, so that it is measured anew."""
        self._values.pop(name, None)

    def known(self, beginning: str) -> dict[str, Any]:
        """Return the values whose names begin with `beginning`, by the rest of the name."""
        return {
            name.removeprefix(beginning): value for name, value in self._values.items() if name.startswith(beginning)
        }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        log.warning("%s cannot be read: everything is measured anew", path)
        return {}
    return values
