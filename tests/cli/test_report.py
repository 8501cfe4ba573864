"""The report command on small made-up runs, and its page in a real browser."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from detectors import tiny_detector
from pycocotools import mask as rle

from norton_det.analysis.roofline import Roofline
from norton_det.cli import quickstart
from norton_det.cli.main import main
from norton_det.cli.report import count_runs
from norton_det.compression.compress import PartReport, compress
from norton_det.compression.plan import load_plan
from norton_det.config import load_config, save_config
from norton_det.data.shapes import write_shapes
from norton_det.files import write_json
from norton_det.models.channels import read_body
from norton_det.models.persistence import save_weights
from norton_det.models.settings import write_settings
from norton_det.report.run_data import read_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<script>alert('fish')</script>"
SECTIONS = [
    *(
        "results",
        "average-precision",
        "categories",
        "precision-and-recall",
        "validation-images",
        "ap-against-latency",
    ),
    *("latency", "size-by-part", "compression-by-layer", "recovery-by-block", "training", "configuration"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dense mask detector and a compressed one, on 15 images of which one category has a hostile name."""
    root = tmp_path_factory.mktemp("runs")
    write_shapes(root / "shapes", train_images=1, val_images=15)
    annotations = root / "shapes/annotations/instances_val.json"
    content = json.loads(annotations.read_text())
    next(c for c in content["categories"] if c["name"] == "fish")["name"] = HOSTILE
    annotations.write_text(json.dumps(content))
    names = ["__background__", *(c["name"] for c in content["categories"])]

    dense = tiny_detector("mask_rcnn", classes=len(names))
    write_settings(dense, {"min_size": (96,), "max_size": 128})
    dense.categories, dense.category_ids = names, list(range(len(names)))
    small, report = compress(dense, load_plan("norton-59", read_body(dense)))
    report = replace(report, recovery=(PartReport("layer1.0", 0.5, 0.25), PartReport("neck", 0.3, 0.2)))
    for name, detector, plan in (("dense", dense, "none"), ("small", small, "norton-59")):
        write_run(root / name, content, f"model.plan={plan}")
        save_weights(root / name / "model_final.pth", detector)
    write_json(root / "small/compression.json", report.to_dict())
    latency = {"median": 10.0, "p5": 9.0, "p95": 12.0, "runs": 5}
    models = {name: {"trained": True, "treatments": {"torch": latency}} for name in ("dense", "small")}
    write_json(root / "benchmark.json", {"machine": "a CPU", "image": [96, 128], "models": models})
    return root


def write_run(folder, content, *words):
    """A run that found every object, and a false one on each image."""
    root = folder.parent
    data = f"{{images: {root}/shapes/val, annotations: {root}/shapes/annotations/instances_val.json}}"
    sizes = [f"output_dir={folder}", "model.detector=mask_rcnn", "model.width=0.125", *words]
    config = load_config("quickstart.yaml", [*sizes, f"data.train={data}", f"data.test={data}"])
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    steps = [{"iteration": n, "loss": 2 / n, "lr": 0.1 / n, "loss_mask": 1 / n} for n in range(1, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    predictions = []
    false = {"category_id": 1, "bbox": [0, 0, 20, 20], "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]], "iscrowd": 0}
    for image in content["images"]:
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for found in (a for a in [*objects, false] if not a["iscrowd"]):
            mask = rle.merge(rle.frPyObjects(found["segmentation"], image["height"], image["width"]))
            mask["counts"] = mask["counts"].decode()
            kept = {key: found[key] for key in ("category_id", "bbox")}
            predictions.append({"image_id": image["id"], "score": 0.9, "segmentation": mask, **kept})
    kinds = ("bbox", "segm")
    names = [category["name"] for category in content["categories"]]
    write_json(folder / "evaluation/predictions.json", predictions)
    write_json(folder / "evaluation/metrics.json", {kind: {"AP": 40.0, "AP50": 60.0, "APs": None} for kind in kinds})
    write_json(folder / "evaluation/per_category.json", {kind: dict.fromkeys(names, 40.0) for kind in kinds})


@pytest.fixture(scope="module")
def page(runs):
    """The report of both, and its text."""
    output = runs / "pages/report.html"
    words = ["--runs", str(runs / "dense"), str(runs / "small"), "--benchmark", str(runs / "benchmark.json")]
    assert main(["report", *words, "--output", str(output)]) == 0
    return output


def sections_of(text):
    return re.findall(r'<section id="([^"]*)"', text)


def test_a_report_has_every_section(page):
    text = page.read_text()
    assert sections_of(text) == SECTIONS
    assert "Not in this report" not in text
    assert text.count('<img src="data:image/jpeg;base64,') == 2 * 12
    assert "mask AP" in text and "layer4.2.conv2" in text and "norton-59" in text


def test_a_report_is_one_file_without_scripts(page):
    text = page.read_text()
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert {link.partition(":")[0][:4] for link in re.findall(r'(?:src|href)="([^#"]*)', text) if link} == {"data"}
    assert "<script" not in text and "&lt;script&gt;alert" in text


def test_the_size_that_is_counted_is_the_detectors_own(page):
    assert "MACs for an image of 128 x 96 pixels" in page.read_text()


def test_a_compression_that_is_named_is_told(runs, tmp_path):
    words = ["--runs", str(runs / "dense"), "--output", str(tmp_path / "dense.html")]
    for more, expected in (([], False), (["--compression", str(runs / "small/compression.json")], True)):
        assert main(["report", *words, *more]) == 0
        assert ("compression-by-layer" in sections_of((tmp_path / "dense.html").read_text())) == expected


def test_the_same_folders_give_the_same_page(page, runs):
    words = ["--runs", str(runs / "dense"), str(runs / "small"), "--benchmark", str(runs / "benchmark.json")]
    assert main(["report", *words, "--output", str(runs / "again.html")]) == 0
    assert (runs / "again.html").read_bytes() == page.read_bytes()


def test_a_compressed_run_alone_stands_beside_the_dense_detector_of_its_configuration(runs, tmp_path):
    """With its own number of categories: the counts are those of the dense run."""
    assert main(["report", "--runs", str(runs / "small"), "--output", str(tmp_path / "alone.html")]) == 0
    text = (tmp_path / "alone.html").read_text()
    assert [s for s in SECTIONS if s not in sections_of(text)] == ["ap-against-latency", "latency"]
    assert "<li>Latency: <code>norton-det benchmark" in text
    with_dense = tmp_path / "both.html"
    assert main(["report", "--runs", str(runs / "dense"), str(runs / "small"), "--output", str(with_dense)]) == 0
    counts = [
        re.findall(r"parameters</dt>.*?</div>", page.read_text())[0] for page in (tmp_path / "alone.html", with_dense)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("kind", "body", "plan"),
    [
        ("fcos", "resnet18", {"notation": "[0.3]*12", "parts": {"classification_head": 1}}),
        ("retinanet_v2", "resnet50", "norton-59-all"),
        ("mask_rcnn_v2", "resnet34", "[0.3]*20"),
    ],
)
def test_the_dense_detector_of_a_compressed_run_of_any_kind_is_counted(kind, body, plan, tmp_path):
    dense = tiny_detector(kind, body, channels=64)
    small, _ = compress(dense, load_plan(plan, read_body(dense)))
    for name, detector in (("small", small), ("dense", dense)):
        (tmp_path / name).mkdir()
        save_weights(tmp_path / name / "model_final.pth", detector)
    alone, both = ([read_run(tmp_path / name, {}) for name in names] for names in (["small"], ["dense", "small"]))
    reference, size, counts = count_runs(alone)
    assert (reference, size) == ("dense", (64, 96))
    assert counts == count_runs(both)[2]
    assert counts["small"]["body"].parameters < counts["dense"]["body"].parameters


def test_where_nothing_tells_the_dense_detector_the_first_run_stands_for_it(runs, tmp_path, caplog):
    (tmp_path / "small").mkdir()
    content = torch.load(runs / "small/model_final.pth", weights_only=True)
    del content["widths"]
    torch.save(content, tmp_path / "small/model_final.pth")
    reference, _, counts = count_runs([read_run(tmp_path / "small", {})])
    assert (reference, list(counts)) == ("small", ["small"])
    assert "the dense detector is not counted: it is not known how wide" in caplog.text


def test_what_a_run_lacks_is_left_out(runs, tmp_path):
    shutil.copytree(runs / "small/evaluation", tmp_path / "run/evaluation")
    assert main(["report", "--runs", str(tmp_path / "run"), "--output", str(tmp_path / "report.html")]) == 0
    assert sections_of((tmp_path / "report.html").read_text()) == ["results", "average-precision", "categories"]


def test_a_run_that_was_stopped_in_evaluation_shows_the_rest(runs, tmp_path):
    shutil.copytree(runs / "small", tmp_path / "small")
    (tmp_path / "small/evaluation/metrics.json").unlink()
    (tmp_path / "small/evaluation/per_category.json").unlink()
    assert main(["report", "--runs", str(tmp_path / "small"), "--output", str(tmp_path / "report.html")]) == 0
    missing = {"average-precision", "categories", "ap-against-latency", "latency"}
    assert sections_of((tmp_path / "report.html").read_text()) == [s for s in SECTIONS if s not in missing]


def test_a_mistake_is_one_line_and_exit_code_2(runs, tmp_path, capsys):
    copy = tmp_path / "small"
    shutil.copytree(runs / "small", copy)
    (copy / "evaluation/predictions.json").write_text("[{}]")
    for words, expected in (
        (["--runs", str(runs)], "no run's folder"),
        (["--runs", str(copy)], "predictions.json: result 0 lacks a key"),
        (["--runs", str(runs / "small"), str(copy)], "two folders have the same name"),
        (["--runs", str(runs / "small"), "--benchmark", str(copy / "metrics.jsonl")], "metrics.jsonl is damaged"),
        (["--runs", str(runs / "small"), "--compression", str(runs / "benchmark.json")], "benchmark.json is damaged"),
    ):
        assert main(["report", *words, "--output", str(tmp_path / "report.html")]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("norton-det report: ") and expected in message
    assert main(["report", "--runs", str(copy), "--output", str(tmp_path / "report.pdf")]) == 2
    assert not list(tmp_path.glob("report.*"))


def test_the_runs_are_benchmarked_by_their_weights(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("norton_det.deploy.benchmark.measure_roofline", lambda device: Roofline(1e9, 1e9))
    weights = [str(runs / name / "model_final.pth") for name in ("dense", "small")]
    words = ["--config", str(runs / "small/config.yaml"), "--weights", *weights, "--input-size", "96", "128"]
    latencies = str(tmp_path / "latencies.json")
    more = ["--treatments", "torch as shipped", "--runs", "1", "--detections", "5", "--json", latencies]
    assert main(["benchmark", *words, *more]) == 0
    both = ["--runs", str(runs / "dense"), str(runs / "small"), "--benchmark", latencies]
    assert main(["report", *both, "--output", str(tmp_path / "report.html")]) == 0
    assert sections_of((tmp_path / "report.html").read_text()) == SECTIONS


def test_the_quickstart_ends_with_its_report(runs, tmp_path, monkeypatch, capsys):
    """Its commands, which take minutes, are taken as done."""
    for name in ("dense", "compressed", "recovered", "small"):
        shutil.copytree(runs / ("dense" if name == "dense" else "small"), tmp_path / name)
    told = {"small": {"choice": {"precision": "float32"}, "parameters": 12345, "macs": 10**6}}
    write_json(tmp_path / "small/small.shrink.json", told)
    (tmp_path / "small/model_final.pth").rename(tmp_path / "small/small.pth")
    monkeypatch.setenv("NORTON_DATASETS", str(runs))
    monkeypatch.setattr(quickstart, "_command", lambda *words: None)
    monkeypatch.setattr(quickstart, "draw_pictures", lambda *arguments: None)
    monkeypatch.setattr(quickstart, "find_runtime", lambda: "torch")
    assert main(["quickstart", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert sections_of(text) == SECTIONS
    assert "<h1>recovered</h1>" in text
    *_, table, _, first, then = capsys.readouterr().out.splitlines()
    assert "12,345" in table and "report.html" in first and "small/small.html" in then
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["runtime"] == "torch" and [*summary["models"]] == ["dense", "compressed", "recovered", "small"]
    assert summary["models"]["small"]["latency_ms"] > 0


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, the machine's or the one that playwright has installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=installed)
        except playwright.Error as error:
            pytest.skip(f"no browser: install chromium, or run `playwright install chromium` ({error.message[:80]})")
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_offline_without_errors(browser, page, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 844}, offline=True, color_scheme=scheme)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.resolve().as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    broken = "[...document.images].filter(i => !i.complete || i.naturalWidth < 50 || i.clientWidth < 50).length"
    assert (tab.evaluate("document.images.length"), tab.evaluate(broken)) == (24, 0)
    sizes = tab.evaluate("[...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(sizes) == 11 and all(w > 200 and h > 80 for w, h in sizes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    back = "getComputedStyle(document.querySelector('section')).backgroundColor"
    assert (lightness(tab.evaluate(ink)) > lightness(tab.evaluate(back))) == (scheme == "dark")
    assert tab.get_by_text(HOSTILE).count() > 0
    tab.click("text=model")
    assert tab.get_by_text("norton-59").is_visible()
    context.close()


def lightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
