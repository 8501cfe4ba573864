"""Runs a JSON list of command lines one after the other in the processes that torchrun takes long to start."""

import json
import sys
from functools import partial

from norton_det.builders import detector as building
from norton_det.cli.main import main

if __name__ == "__main__":
    building.compress_and_recover = partial(building.compress_and_recover, steps=1)
    for words in json.loads(sys.argv[1]):
        if main(words):
            sys.exit(f"failed: {words}")
