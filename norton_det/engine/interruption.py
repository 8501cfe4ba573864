"""Notes SIGTERM, Ctrl-C and a closed terminal instead of ending at once, so that work can be saved first."""

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """A context in which the first of SIGNALS is only noted, in `received` (0: none), and later ones are ignored.

    A SIGHUP that was ignored before, as under `nohup`, stays ignored.
    It works in the main thread only, as Python's signal handlers do.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        noted = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
        self._handlers = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
