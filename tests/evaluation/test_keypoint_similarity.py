"""AP of keypoints that are not COCO's: any number of them, with sigmas of one's own."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from norton_det.data import shapes
from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.evaluation.coco import CocoEvaluator, evaluate_results, load_results, oks_sigmas, precision_recall
from norton_det.files import write_json
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints

AREA = 40.0 * 40.0


def truth(folder: Path, names: list[str], images: int = 6) -> Path:
    """An object of 40 x 40 pixels an image, its keypoints scattered, one of several hidden."""
    rng = np.random.default_rng(len(names))
    annotations = []
    for number in range(images):
        points = np.concatenate([rng.uniform(20, 60, (len(names), 2)), np.full((len(names), 1), 2)], axis=1)
        if len(names) > 1:
            points[number % len(names)] = 0
        box = {"bbox": [20, 20, 40, 40], "area": AREA, "iscrowd": 0}
        one = {"id": number + 1, "image_id": number, "category_id": 3, "keypoints": points.flatten().tolist(), **box}
        annotations.append({**one, "num_keypoints": int((points[:, 2] > 0).sum())})
    content = {
        "info": {},
        "images": [{"id": id, "file_name": f"{id}.jpg", "height": 90, "width": 90} for id in range(images)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "plate", "keypoints": names}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def shaken(path: Path, deviation: float) -> list[dict[str, Any]]:
    """COCO results: each object, its keypoints moved at random."""
    rng = np.random.default_rng(1)
    results = []
    for number, annotation in enumerate(json.loads(path.read_text())["annotations"]):
        points = np.reshape(annotation["keypoints"], (-1, 3)) + rng.normal(0, deviation, (1, 3)) * [1, 1, 0]
        keys = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append({**keys, "score": 0.9 - 0.1 * number, "keypoints": points.flatten().tolist()})
    return results


def oracle(path: Path, results: list[dict[str, Any]], sigmas: np.ndarray[Any, Any]) -> list[float]:
    """pycocotools as its demonstration uses it, with these sigmas; in points."""
    file = path.with_name("oracle.json")
    write_json(file, results)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
        comparison = COCOeval(coco, coco.loadRes(str(file)), "keypoints")
        comparison.params.kpt_oks_sigmas = sigmas
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    return [math.nan if value == -1 else 100 * value for value in comparison.stats]


def evaluator(path: Path, sigmas: list[float] | None = None) -> CocoEvaluator:
    files = DatasetFiles("own", path.parent, path, keeps_ids=False)
    return CocoEvaluator(path, read_categories(files, "keypoints"), "keypoints", sigmas)


@pytest.mark.parametrize("count", [1, 4, 17, 30])
@pytest.mark.parametrize("given", [False, True])
def test_average_precision_is_pycocotools_for_any_number(tmp_path: Path, count: int, given: bool) -> None:
    path = truth(tmp_path, [f"k{number}" for number in range(count)])
    results = shaken(path, 3)
    sigmas = np.linspace(0.08, 0.03, count) if given else np.full(count, 0.05)
    expected = oracle(path, results, sigmas)
    assert 5 < expected[0] < 95
    chosen = sigmas.tolist() if given else None
    assert list(evaluate_results(path, results, "keypoints", sigmas=chosen).values()) == pytest.approx(
        expected, nan_ok=True, abs=0
    )
    subject = evaluator(path, chosen)
    subject.results = results
    assert list(subject.evaluate()["keypoints"].values()) == pytest.approx(expected, nan_ok=True, abs=0)
    curves = precision_recall(path, results, "keypoints", chosen)
    assert [100 * curves.mean[0.5].mean(), 100 * curves.mean[0.75].mean()] == pytest.approx(expected[1:3])


def test_similarity_by_hand(tmp_path: Path) -> None:
    """All keypoints d pixels off: OKS is exp(-d^2 / (2 area (2 sigma)^2)), and AP counts the thresholds below it."""
    path = truth(tmp_path, ["a", "b", "c"], images=1)
    [result] = shaken(path, 0)
    moved = np.reshape(result["keypoints"], (-1, 3)) + np.array([1.5, 2, 0])
    result["keypoints"] = moved.flatten().tolist()
    for sigma in (0.05, 0.07):
        similarity = math.exp(-6.25 / (2 * AREA * (2 * sigma) ** 2))
        below = sum(threshold <= similarity for threshold in np.arange(0.5, 1, 0.05))
        assert 0 < below < 10
        found = evaluate_results(path, [result], "keypoints", sigmas=None if sigma == 0.05 else [sigma] * 3)
        assert found["AP"] == pytest.approx(10 * below)


def test_coco_s_seventeen_have_pycocotools_sigmas_and_others_a_uniform_one_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    assert oks_sigmas(COCO_KEYPOINTS).tolist() == Params("keypoints").kpt_oks_sigmas.tolist()
    assert oks_sigmas(COCO_KEYPOINTS, [0.1] * 17).tolist() == [0.1] * 17
    assert caplog.messages == []
    others = Keypoints.named([f"k{number}" for number in range(17)])
    assert oks_sigmas(others).tolist() == [0.05] * 17
    [message] = caplog.messages
    assert "17 keypoints" in message and "0.05" in message and "data.oks_sigmas" in message


@pytest.mark.parametrize("sigmas", [[], [0.1] * 3, [0.1] * 5, [0.1, 0.1, 0.1, 0.0]])
def test_sigmas_are_one_a_keypoint(tmp_path: Path, sigmas: list[float]) -> None:
    path = truth(tmp_path, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"^OKS sigmas \[.*\], expected 4 above zero, one a keypoint$"):
        evaluator(path, sigmas)


def test_other_keypoints_than_the_detector_s_are_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    path = truth(tmp_path, ["a", "b", "c"])
    categories = read_categories(DatasetFiles("own", tmp_path, path, keeps_ids=False), "keypoints")
    truth(tmp_path, ["c", "b", "a"])
    with pytest.raises(ValueError, match=r"truth\.json: the keypoints are c, b, a, expected the detector's, a, b, c"):
        CocoEvaluator(path, categories, "keypoints")


def test_a_detector_that_finds_another_number_is_refused(tmp_path: Path) -> None:
    output = {"boxes": torch.ones(1, 4), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    subject = evaluator(truth(tmp_path, ["a", "b", "c"]))
    subject.process([0], [{**output, "keypoints": torch.ones(1, 3, 3)}])
    with pytest.raises(ValueError, match="17 keypoints, expected 3"):
        subject.process([0], [{**output, "keypoints": torch.ones(1, 17, 3)}])


def test_results_and_truth_with_another_number_of_keypoints_name_file_and_entry(tmp_path: Path) -> None:
    path = truth(tmp_path, ["a", "b", "c", "d"])
    results = shaken(path, 1)
    write_json(tmp_path / "found.json", results)
    assert load_results(tmp_path / "found.json", path, "keypoints") == results
    results[1]["keypoints"] = [1.0] * 51
    write_json(tmp_path / "found.json", results)
    with pytest.raises(ValueError, match=r"found\.json: result 1 has keypoints .*, expected 12 numbers"):
        load_results(tmp_path / "found.json", path, "keypoints")
    content = json.loads(path.read_text())
    content["annotations"][2]["keypoints"] = [1, 1, 2]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"truth\.json: annotation 3: keypoints \[1, 1, 2\], expected 4 times"):
        evaluate_results(path, [], "keypoints")


def test_objects_without_keypoints_count_as_showing_none(tmp_path: Path) -> None:
    path = truth(tmp_path, list(shapes.KEYPOINT_NAMES[:5]))
    content = json.loads(path.read_text())
    results = shaken(path, 3)
    expected = evaluate_results(path, results, "keypoints")
    for empty in ({}, {"keypoints": []}):
        plain = {"id": 77, "image_id": 0, "category_id": 3, "bbox": [70, 70, 9, 9], "area": 81, "iscrowd": 0, **empty}
        path.write_text(json.dumps({**content, "annotations": [*content["annotations"], plain]}))
        assert evaluate_results(path, results, "keypoints") == pytest.approx(expected, nan_ok=True)
