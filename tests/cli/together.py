"""Runs a JSON list of command lines one after the other in the processes that torchrun takes long to start."""

import json
import sys
from contextlib import nullcontext
from functools import partial

import torch

from norton_det.builders import detector as building
from norton_det.cli.main import main
from norton_det.engine import distributed

if __name__ == "__main__":
    building.compress_and_recover = partial(building.compress_and_recover, steps=1)
    with distributed.process_group(torch.device("cpu")):
        distributed.process_group = nullcontext  # torchrun's store joins processes once
        for words in json.loads(sys.argv[1]):
            if main(words):
                sys.exit(f"failed: {words}")
