"""The table of docs/benchmarks.md: five detectors, dense, norton and norton-all, in every treatment.

    python benchmarks/deployment.py --machine NAME [--image photo.jpg] [--batch 1] [--runs 5] [--detectors mask_rcnn]

Runs `norton-det benchmark` once a detector, and writes docs/benchmarks/NAME/DETECTOR.json and .png, and the page,
which has a section for each machine that was measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from norton_det.analysis.latency import detector_latency
from norton_det.builders.detector import random_pair
from norton_det.cli.main import main as norton_det
from norton_det.config import load_config
from norton_det.data.clip import drawn_picture
from norton_det.data.images import ImageFiles
from norton_det.deploy.treatments import SHIPPED, TREATMENTS, fix_workload, treated, usable_treatments
from norton_det.engine.distributed import find_device
from norton_det.files import write_json

PAGE = Path(__file__).parent.parent / "docs/benchmarks.md"
RESULTS = PAGE.parent / "benchmarks"
PLANS = ("norton-77", "norton-77-all")
PROPOSALS = 200
TITLES = {
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "keypoint_rcnn": "Keypoint R-CNN",
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
}
HEAD = """# Speed

Made by `python benchmarks/deployment.py --machine NAME`. Random weights, the same work for all models: proposals are
the anchors, 1,000 of them unless a table says otherwise, and 20 detections an image go to the mask and keypoint
heads; of a detector of one stage every level gives as many candidates as it may. *Speed* is beside the dense model in
the same treatment, *in all* beside the dense model as torchvision ships it. Each treatment is one run, the models in
turn, medians with the 5th and 95th percentile. `norton-77` compresses the body, `norton-77-all` the neck, the RPN and
the heads too. What it costs in AP, on small models, stands at the end.

What a CPU can do decides what there is to win: one with AMX multiplies dense matrices of bfloat16 and int8 so fast
that what remains is the rest of the detector, in which compression changes little; `ONEDNN_MAX_CPU_ISA` makes it
compute like one without. A large GPU is through with the convolutions of one image before it has been told what
else to do: there CUDA graphs and bfloat16 help, and compression saves parameters, not time. The CPUs' machines are
shared: what was not measured in turn, *in all* above everything, moves by a quarter from one hour to the next, and at
times by half. *Share of peak* is how fast a model multiplies beside one large product of matrices; that and the times
by part are runs of their own, so that the share may be above 100 %, and the parts may add up to more than the whole.
"""
ACCURACY = """By `python benchmarks/accuracy.py --epochs {tuned}`: models of the quickstart's size (a quarter of the
width, 200 proposals), dense ones trained on `shapes` for {dense} epochs, compressed ones recovered without labels,
then fine-tuned for {tuned}. `norton` is the quickstart's plan for the body; `norton-all` puts neck, RPN and heads in
CP form beside. AP / AP50 of boxes, masks and keypoints on the 200 validation images; int8 is calibrated on 200 of the
others. Torch pads the images of a batch to one size and OpenVINO takes them one by one, which moves AP by a few
tenths. The dense ones have not converged: where a compressed one ends above, its further training did that.
"""
FULL_WIDTH = """At full width, `norton-77-all` started from ImageNet's filters and trained like the dense ones above:
"""
PARTS = """Milliseconds by part, by the runtime's own counters; in brackets, in float32, the share that the part's
multiply-accumulates alone would take at the machine's rate. *Rest* is what no part is counted for; counters slow a
runtime down, and where that is more, it is negative."""
PARITY = """
Its boxes in {precision} beside those in float32, both by OpenVINO, at 800x1066: of {expected} detections {found} are
found again (same class, IoU of 0.5 or more), their sides moved by {box_median:.1f} pixels (median), {box_p99:.1f}
(99th percentile).
"""
FEWER = """
Timed in turn, in a run of their own: `norton-77-all` with {proposals} proposals, as for the accuracies below, takes
{small} ms in {treatment}, dense as shipped with 1,000 takes {shipped} ms: {speed:.1f}x.
"""


def machine_section(folder: Path) -> str:
    """The page's section on one machine."""
    results = {name: json.loads(path.read_text()) for name in TITLES if (path := folder / f"{name}.json").exists()}
    [(machine, batch)] = {(result["machine"], result["batch"]) for result in results.values()}
    tables = (table(name, result, folder / f"{name}.png") for name, result in results.items())
    return f"\n## {machine}{f', {batch} images a call' if batch > 1 else ''}\n" + "".join(tables)


def table(name: str, result: dict, plot: Path) -> str:
    """What stands of one detector in a machine's section."""
    models = result["models"]
    shipped = next(iter(models["dense"]["treatments"].values()))["median"]
    lines = [
        f"\n### {TITLES[name]}\n",
        f"An image of {'x'.join(map(str, result['image']))} pixels, batch {result['batch']}.\n",
        "| treatment | model | ms | p5 | p95 | speed | in all | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for treatment, dense in models["dense"]["treatments"].items():
        for model, values in models.items():
            latency = values["treatments"][treatment]
            milliseconds = " | ".join(_ms(latency[name]) for name in ("median", "p5", "p95"))
            lines.append(
                f"| {treatment} | {model} | {milliseconds} | "
                f"{dense['median'] / latency['median']:.2f}x | {shipped / latency['median']:.2f}x | "
                f"{latency['peak_memory'] / 2**20:.0f} |"
            )
    lines += [
        "\n| model | parameters | GMACs | MiB | regions | share of peak | optimised torch, ms by part |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    for model, values in models.items():
        regions = ", ".join(f"{kind} {count}" for kind, count in values["regions"].items())
        parts = ", ".join(f"{part} {_ms(ms)}" for part, ms in values["milliseconds_by_part"].items())
        lines.append(
            f"| {model} | {values['parameters']:,} | {values['macs'] / 1e9:.1f} | {values['bytes'] / 2**20:.0f} | "
            f"{regions} | {values['share_of_peak']:.0%} | {parts} |"
        )
    lines += parts_table({name: models[name]["treatments"] for name in ("dense", PLANS[-1])})
    if "fewer" in result:
        fewer = result["fewer"]
        lines.append(FEWER.format(**fewer, small=_ms(fewer[PLANS[-1]]), shipped=_ms(fewer["dense"])))
    lines.append(f"\n![latency of {TITLES[name]}]({plot.relative_to(PAGE.parent)})")
    return "\n".join(lines) + "\n"


def parts_table(models: dict[str, Any]) -> list[str]:
    """Milliseconds of each part, a column a treatment and model, and in brackets the share that is arithmetic."""
    columns = {
        f"{treatment}, {model}": values
        for treatment in next(iter(models.values()))
        for model, treatments in models.items()
        if "seconds_by_part" in (values := treatments[treatment])
    }
    if not columns:
        return []
    parts = dict.fromkeys(part for values in columns.values() for part in values["seconds_by_part"])
    rows = []
    for part in sorted(parts, key="rest".__eq__):
        cells = []
        for values in columns.values():
            seconds, share = (values[name].get(part) for name in ("seconds_by_part", "share_of_arithmetic"))
            told = "" if seconds is None else f"{1000 * seconds:.1f}"
            cells.append(f"{told} ({share:.0%})" if share else told)
        rows.append(f"| {part} | {' | '.join(cells)} |")
    heads = [f"\n{PARTS}\n", f"| ms | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    return [*heads, *rows]


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.{0 if milliseconds >= 100 else 1}f}"


def time_fewer_proposals(name: str, images: list[Tensor], runs: int) -> dict[str, Any]:
    """Milliseconds of the dense detector as shipped, and of the smallest in the lowest precision with fewer
    proposals, in turn."""
    models = {}
    for plan, proposals in (("none", 1000), (PLANS[-1], PROPOSALS)):
        config = load_config(f"{name}_norton_all.yaml", [f"model.plan={plan}", f"model.test_proposals={proposals}"])
        [*_, detector] = random_pair(config).values()
        fix_workload(detector, detections=20)
        models[plan] = detector.eval()
    device = find_device("auto")
    images, treatment = [image.to(device) for image in images], usable_treatments(device)[-1]
    runners = {
        "dense": treated(models["none"].to(device), SHIPPED, images),
        PLANS[-1]: treated(models[PLANS[-1]].to(device), treatment, images),
    }
    medians = {model: latency.median for model, latency in detector_latency(runners, images, runs=runs).items()}
    speed = medians["dense"] / medians[PLANS[-1]]
    return {"proposals": PROPOSALS, "treatment": treatment, **medians, "speed": speed}


def accuracy_section(result: dict) -> str:
    """The page's section on what `benchmarks/accuracy.py` found."""
    lines = ["\n## What it costs in AP\n", ACCURACY.format(**result["epochs"])]
    for kind, title in TITLES.items():
        if kind in result:
            lines += [*accuracy_table(title, result[kind]), ""]
    if "full_width" in result:
        lines += [FULL_WIDTH, *accuracy_table(TITLES["faster_rcnn"], {"norton-77-all": result["full_width"]["rows"]})]
        for precision, moved in result["full_width"]["parity"].items():
            lines.append(PARITY.format(precision=precision, **moved))
    return "\n".join(lines)


def accuracy_table(title: str, models: dict) -> list[str]:
    """A row a model, a column a variant of it."""
    variants = list(next(iter(models.values())))
    lines = [f"| {title} | {' | '.join(variants)} |", "| --- |" + " ---: |" * len(variants)]
    for model, rows in models.items():
        cells = " | ".join(f"{rows[name]['AP']:.1f} / {rows[name]['AP50']:.1f}" for name in variants)
        lines.append(f"| {model} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--machine", help="the folder of docs/benchmarks for what is measured here; none: only the page"
    )
    parser.add_argument("--image", help="default: a drawn scene of 480x640")
    parser.add_argument("--batch", type=int, default=1, help="images a call, the same one repeated")
    parser.add_argument("--runs", default="5")
    parser.add_argument("--treatments", nargs="+", choices=TREATMENTS, help="default: all that can be used here")
    parser.add_argument("--detectors", nargs="+", default=list(TITLES), choices=TITLES)
    arguments = parser.parse_args()
    options = ["--image", arguments.image] if arguments.image else []
    options += ["--treatments", *arguments.treatments] if arguments.treatments else []
    image = ImageFiles([Path(arguments.image)])[0] if arguments.image else drawn_picture(480, 640)
    for name in arguments.detectors if arguments.machine else []:
        output = RESULTS / arguments.machine / f"{name}.json"
        words = ["benchmark", "--config", f"{name}_norton_all.yaml", "--plans", *PLANS, "--runs", arguments.runs]
        words += ["--batch", str(arguments.batch)]
        if norton_det([*words, *options, "--json", str(output)]):
            raise SystemExit(2)
        if name.endswith("rcnn"):
            fewer = time_fewer_proposals(name, [image] * arguments.batch, int(arguments.runs))
            write_json(output, json.loads(output.read_text()) | {"fewer": fewer})
    sections = [machine_section(folder) for folder in sorted(RESULTS.iterdir()) if folder.is_dir()]
    if (accuracy := RESULTS / "accuracy.json").exists():
        sections.append(accuracy_section(json.loads(accuracy.read_text())))
    PAGE.write_text(HEAD + "".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
