"""Seconds of a quickstart training step, quiet and beside one busy process, by how threads wait for each other.

    python benchmarks/busy_machine.py [--rounds 10] [--threads 0]

Two processes train, one with OpenMP's default of waiting in a loop for milliseconds, one as `import norton_det` has
it where nobody has set anything, asleep after microseconds. They take single steps in turn, each quiet and beside a
process that does nothing but count: medians, ratios.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import product

POLICIES = ("default", "norton_det")
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def take_steps(policy: str) -> None:
    """Take a training step for each line of the input, and print its seconds."""
    if policy == "norton_det":
        import norton_det  # noqa: F401  before torch, as the commands do
    import numpy as np
    import torch

    from norton_det.builders.detector import random_pair
    from norton_det.config import load_config
    from norton_det.data.shapes import draw_scene

    config = load_config("quickstart.yaml")
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(config.train.batch_size)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255 for scene in scenes]
    targets = []
    for scene in scenes:
        boxes = torch.tensor([annotation["bbox"] for annotation in scene.annotations])
        labels = torch.tensor([annotation["category_id"] for annotation in scene.annotations])
        targets.append({"boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1), "labels": labels})
    detector = random_pair(config)["compressed"].train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        optimizer.step()

    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


def start_training(policy: str, threads: int) -> subprocess.Popen[str]:
    """Start a process that trains under a policy, and wait until it is ready."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, __file__, "--take-steps", policy]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    process.stdout.readline()
    return process


def timed_step(training: subprocess.Popen[str]) -> float:
    """The seconds of one step."""
    training.stdin.write("\n")
    training.stdin.flush()
    return float(training.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of each training (default: OpenMP's, all cores)")
    parser.add_argument("--take-steps", choices=POLICIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.take_steps:
        return take_steps(arguments.take_steps)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    other.send_signal(signal.SIGSTOP)
    trainings: dict[str, subprocess.Popen[str]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    try:
        for policy in POLICIES:
            trainings[policy] = start_training(policy, arguments.threads)
        for _, place, policy in product(range(arguments.rounds), ("quiet", "busy"), POLICIES):
            other.send_signal(signal.SIGCONT if place == "busy" else signal.SIGSTOP)
            seconds.setdefault((policy, place), []).append(timed_step(trainings[policy]))
    finally:
        for process in (other, *trainings.values()):
            process.kill()
            process.wait()
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for policy in POLICIES:
        quiet, busy = medians[policy, "quiet"], medians[policy, "busy"]
        print(f"{policy}: quiet {quiet:.3f} s, beside a busy process {busy:.3f} s, {busy / quiet:.2f}x")
    for place in ("quiet", "busy"):
        print(f"{place}: default / norton_det {medians['default', place] / medians['norton_det', place]:.2f}x")


if __name__ == "__main__":
    main()
