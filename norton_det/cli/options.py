"""Declares and checks options that several commands share."""

import argparse
import logging
import re
from contextlib import suppress
from pathlib import Path

from torch import nn

from norton_det.config import load_config
from norton_det.models.settings import read_settings

log = logging.getLogger(__name__)
TRAINED = "model_final.pth"


def add_weights(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare `--weights`, and options for what a file of Detectron2's does not say."""
    parser.add_argument("--weights", required=True, help=f"{what}: ours, torchvision's file or Detectron2's")
    parser.add_argument("--d2-config", help="Detectron2's YAML file, instead of its model zoo's settings")
    parser.add_argument("--categories", help="names of what it finds: a JSON list, or data in COCO's format")


def weights_words(args: argparse.Namespace) -> tuple[str, str | None, str | None]:
    """Return the options that `add_weights` declared, as the arguments of `read_weights`."""
    return args.weights, args.d2_config, args.categories


def require_at_least(args: argparse.Namespace, **least: int) -> None:
    """Raise ValueError for the first of the given options whose number is below its least."""
    for name, smallest in least.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < smallest:
                raise ValueError(f"--{name.replace('_', '-')}: at least {smallest}, got {number}")


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise ValueError for the first of the given options that is a number, but not above 0."""
    for name in names:
        number = getattr(args, name)
        if number is not None and not number > 0:
            raise ValueError(f"--{name.replace('_', '-')} {number:g}: expected a number above 0")


def share(text: str) -> float:
    """Read a number from 0 to 1, as the `type` of an argument."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"a number from 0 to 1, got {text!r}")


def share_of_size(detector: nn.Module, pixels: int, least: float = 0) -> float:
    """Return `--size`, the shorter side of images, as a share of a detector's own.

    Raises ValueError for a larger size, one below the share `least`, and a classifier.
    """
    sizes = read_settings(detector).get("min_size")
    if sizes is None:
        raise ValueError("--size: a classifier takes any size as it is; leave it out")
    own = sizes[-1]
    if not least * own <= pixels <= own:
        raise ValueError(f"--size {pixels}: expected {max(1, round(least * own))} to {own} pixels")
    return float(pixels / own)


def find_trained(weights: str | None, config: str | None) -> Path | None:
    """Find the file of a demo's detector, or return None if there is none.

    It is `weights`, or else what the configuration trained or starts from, or else the newest model_final.pth below
    output/. Raises ValueError for a configuration that has not been trained.
    """
    if weights is not None:
        return Path(weights)
    if config is not None:
        settings = load_config(config)
        trained = Path(settings.output_dir) / TRAINED
        if settings.model.weights != "none" and not trained.exists():
            return Path(settings.model.weights)
        if not trained.exists():
            raise ValueError(f"{config}: {trained} is not there; train it, or name a detector with --weights")
        return trained
    found = max(Path("output").rglob(TRAINED), key=lambda path: path.stat().st_mtime, default=None)
    if found:
        log.info("the newest trained detector: %s", found)
    return found


def size(text: str) -> tuple[int, int]:
    """Read a height and a width in pixels, such as 480x640."""
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"expected HxW in pixels, such as 480x640, got {text!r}")
    return int(sides[1]), int(sides[2])
