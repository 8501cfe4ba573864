"""Runs `norton-det COMMAND`: each command has one module, and errors are told in one line."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from tqdm import tqdm

from norton_det.cli.failures import LESS_MEMORY, one_line

COMMANDS = {
    "train": "train and evaluate a detector",
    "check": "check a dataset before training on it",
    "compress": "compress trained weights by a plan",
    "shrink": "make a detector fast in one command, from photos without labels",
    "search-plan": "find the best plan for a budget, from unlabelled images",
    "analyze": "count parameters and MACs, dense beside compressed",
    "agreement": "measure how far a detector agrees with another on images without labels",
    "benchmark": "measure latency, dense beside compressed",
    "report": "write one HTML page about a run, beside others and with benchmarks",
    "export-model": "write a detector as an ONNX or OpenVINO file",
    "compare-decompositions": "compare filter-wise CP with layer-wise and reshape-based decompositions",
    "gradcam": "draw class activation maps, dense beside compressed",
    "finetune-backbone": "fine-tune a compressed ResNet-50 on classification",
    "evaluate-predictions": "compute the AP of a COCO results file",
    "image": "draw detections on images",
    "video": "draw detections on a video or a webcam",
    "visualize-data": "draw training images with their annotations, augmented",
    "quickstart": "train, compress and speed up a detector on drawn data, in minutes",
}

STOPPED = 130
"""The exit code of a command that Ctrl-C stopped."""


class _WithDefaults(argparse.HelpFormatter):
    """Shows each option's default behind its help, unless that says it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_none = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        if has_none or not action.help or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class _BesideBars(logging.Handler):
    """Writes messages to the error stream, on lines of their own if a progress bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code: 2 for an error of the user or the environment.

    A command's `run` raises ValueError for what a user can get wrong; its one line is printed without a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name = words[0]
    if name not in COMMANDS:
        print(f"norton-det: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_BesideBars()])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as configured
    warnings.filterwarnings("ignore", "`torch.jit.trace", category=FutureWarning)  # the export to ONNX needs it
    warnings.filterwarnings("ignore", "Image size", category=Warning)  # Pillow warns of large images, which are fine
    command = import_module(f"norton_det.cli.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"norton-det {name}", description=command.__doc__, allow_abbrev=False, formatter_class=_WithDefaults
    )
    command.add_arguments(parser)
    try:
        command.run(parser.parse_intermixed_args([_at_home(word) for word in words[1:]]))
    except Exception as error:
        told = one_line(error, getattr(command, "LESS_MEMORY", LESS_MEMORY))
        if told is None:
            raise
        print(f"norton-det {name}: {' '.join(told.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = getattr(command, "GOES_ON", "")
        print(f"norton-det {name}: stopped{f'; {goes_on}' if goes_on else ''}", file=sys.stderr)
        return STOPPED
    return 0


def _at_home(word: str) -> str:
    """Replace `~` by the home folder at the start of a word, or right after its `--option=` or `key=`."""
    name, value = re.fullmatch(r"([\w.-]+=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    return name + os.path.expanduser(value)


def launch(name: str) -> None:
    """Run one command with the process's own arguments and exit, for the scripts in tools/ and demo/."""
    sys.exit(main([name, *sys.argv[1:]]))


def _usage() -> str:
    lines = [f"  {name:24}{text}" for name, text in COMMANDS.items()]
    return "usage: norton-det COMMAND [options]\n\n" + "\n".join(lines) + "\n\nnorton-det COMMAND --help tells more"
