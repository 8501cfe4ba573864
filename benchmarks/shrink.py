"""What `norton-det shrink` makes of a detector for a row of deadlines, and what a single lever would have made.

    python benchmarks/shrink.py --name cells --weights dense.pth --images photos --annotations val.json \
        --labelled images --work output/shrink [--deadlines 10] [--steps 200]

The deadlines lie evenly, by their logarithm, between the fastest that can be made and what the dense detector takes
in OpenVINO's float32. Each file is timed anew in a process of its own, and its AP measured on labelled images that
nothing was fitted on. Then the same deadline is served by one lever alone: plans, sizes or precisions. Adds all of it
under the name to docs/shrink/deadlines.json, and writes the tables at the end of docs/shrink.md anew. `--draw` does
only the latter.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import Labelled

from norton_det.analysis.latency import detector_latency
from norton_det.analysis.machine import describe_machine
from norton_det.api import findings_of, load_detector
from norton_det.deploy.optimize import Runtime
from norton_det.files import write_json
from norton_det.shrink.bench import Stopwatch
from norton_det.shrink.choosing import WITHIN, Deadline
from norton_det.shrink.levers import DENSE, Choice, proposal_counts, usable_precisions
from norton_det.shrink.making import Recovery, load
from norton_det.shrink.photos import read_photos
from norton_det.shrink.shrinking import Asked, Result, shrink
from norton_det.shrink.workshop import Made

DOCS = Path(__file__).parent.parent / "docs"
RESULT, PAGE = DOCS / "shrink/deadlines.json", DOCS / "shrink.md"
MARK = "<!-- Below: written by benchmarks/shrink.py -->\n"
RUNTIME: Runtime = "openvino"


def only(lever: str, plain: Choice) -> Callable[[Choice], bool]:
    """What a single lever can set, all others as in `plain`."""
    levers = ("size", "learns") if lever == "size" else (lever,)
    return lambda choice: replace(choice, **{name: getattr(plain, name) for name in levers}) == plain


def in_a_process_of_its_own(args: argparse.Namespace, made: Made) -> float:
    words = ["--images", args.images, "--image-count", args.image_count, "--time", made.path,
             made.option.choice.precision]  # fmt: skip
    told = subprocess.run(
        [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return float(told.stdout.split()[-1])


def row(args: argparse.Namespace, made: Made, data: Labelled) -> dict[str, Any]:
    """What a file does: as the command says, timed anew, and its AP."""
    detector = load(made.path, made.option.choice.precision, data.images[0])
    return {
        "choice": str(made.option.choice),
        "milliseconds": made.option.milliseconds,
        "anew": in_a_process_of_its_own(args, made),
        "agreement": made.option.agreement,
        "interval": made.interval,
        "parameters": made.parameters,
        "AP": data.ap(findings_of(detector, data.images, made.path.name)),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    data = Labelled(args.annotations, args.labelled, None)
    photos = read_photos(args.images, args.image_count)
    dense = load_detector(args.weights)
    precisions = usable_precisions(RUNTIME)
    recovery = Recovery(args.steps, None, 0)
    rows: dict[Path, dict[str, Any]] = {}

    def serve(goal: Deadline, among: Callable[[Choice], bool] = lambda choice: True) -> Result:
        asked = Asked(goal, RUNTIME, precisions, recovery, among=among)
        return shrink(dense, photos, asked, args.work / "small.xml", args.work)

    def told(result: Result) -> dict[str, Any]:
        path = result.after.path
        if path not in rows:
            rows[path] = row(args, result.after, data)
        return rows[path] | {"is_met": result.is_met, "milliseconds": result.after.option.milliseconds}

    plain = Choice(DENSE, 1.0, proposal_counts(dense)[0], precisions[0])
    whole = serve(Deadline(1e9), lambda choice: choice == plain)
    goals = np.geomspace(1.05 * whole.fastest, whole.before.option.milliseconds, args.deadlines)
    shipped = detector_latency({"dense": dense}, [photos.held[0]], runs=10)["dense"].median
    results = {
        "photos": [len(photos.fitted), len(photos.held)],
        "labelled": len(data.ids),
        "steps": args.steps,
        "machine": describe_machine(torch.device("cpu")),
        "as shipped": shipped,
        "dense": told(whole),
        "fastest": whole.fastest,
        "deadlines": {},
    }
    for milliseconds in map(float, goals):
        goal = Deadline(milliseconds)
        found = {"all levers": told(serve(goal))}
        for lever in ("plan", "size", "precision"):
            found[lever] = told(serve(goal, only(lever, plain)))
        results["deadlines"][f"{milliseconds:.1f}"] = found
        print(milliseconds, {name: (each["choice"], each["anew"], each["AP"]) for name, each in found.items()})
        keep(args.name, results)
    return results


def keep(name: str, results: dict[str, Any]) -> None:
    every = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    write_json(RESULT, every | {name: results}, indent=1)


def tables(results: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, each in results.items():
        ap = each["dense"]["AP"]
        lines += [
            f"### {name}",
            "",
            f"{each['photos'][0]} photos to fit on, {each['photos'][1]} held back, {each['steps']} steps of recovery "
            f"a plan; AP on {each['labelled']} labelled images; {each['machine']}. The dense detector takes "
            f"{each['as shipped']:.0f} ms as shipped, {each['dense']['anew']:.1f} in OpenVINO's float32, and has "
            f"{_all(ap)} AP; the fastest possible takes {each['fastest']:.1f} ms.",
            "",
            "| deadline | ms, anew | agreement | AP | of the dense one's | chosen | best single lever | AP |",
            "| ---: | ---: | ---: | ---: | ---: | --- | --- | ---: |",
        ]
        for deadline, found in each["deadlines"].items():
            best = found["all levers"]
            met = {k: v for k, v in found.items() if k != "all levers" and v["anew"] <= WITHIN * float(deadline)}
            lever = max(met, key=lambda key: met[key]["agreement"], default=None)
            single = f"{lever}: {met[lever]['agreement']:.1f} | {_all(met[lever]['AP'])}" if lever else "none | "
            shares = " / ".join(f"{best['AP'][task] / ap[task]:.0%}" for task in ap)
            lines.append(
                f"| {deadline} | {best['anew']:.1f} | {best['agreement']:.1f} | {_all(best['AP'])} | {shares} | "
                f"{best['choice']} | {single} |"
            )
        lines.append("")
    return lines


def _all(ap: dict[str, float]) -> str:
    return " / ".join(f"{value:.1f}" for value in ap.values())


def write_page() -> None:
    text, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text("\n".join([text + MARK, *tables(json.loads(RESULT.read_text()))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="what the detector finds")
    parser.add_argument("--weights", type=Path, help="the dense detector's")
    parser.add_argument("--images", type=Path, help="a folder of photos without labels")
    parser.add_argument("--image-count", type=int, default=200, help="the first so many of them")
    parser.add_argument("--annotations", type=Path, help="a JSON in COCO's format, of other photos")
    parser.add_argument("--labelled", type=Path, help="the folder of its images")
    parser.add_argument("--work", type=Path, default=Path("output/shrink"), help="where measurements are kept")
    parser.add_argument("--deadlines", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200, help="of recovery, of each plan")
    parser.add_argument("--time", nargs=2, metavar=("FILE", "PRECISION"), help="print a file's milliseconds, no more")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.time:
        file, precision = args.time
        photos = list(read_photos(args.images, args.image_count).held)
        print(Stopwatch(load(Path(file), precision, photos[0]), photos).unit)
        return
    if not args.draw:
        if not all((args.name, args.weights, args.images, args.annotations, args.labelled)):
            parser.error("--name, --weights, --images, --annotations and --labelled are needed")
        keep(args.name, measure(args))
    write_page()


if __name__ == "__main__":
    main()
