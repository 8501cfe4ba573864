import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from norton_det.data import shapes
from norton_det.data.catalog import DatasetFiles, read_categories
from norton_det.data.reading import Task
from norton_det.evaluation.coco import CocoEvaluator, evaluate_results, load_results, precision_recall
from norton_det.evaluation.results import named_results, to_output, to_results
from norton_det.files import write_json

HEIGHT, WIDTH = 120, 160
IMAGES = (4, 9, 17, 30)
CATEGORY_IDS = (2, 5)
BOX_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
KEYPOINT_NAMES = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]


def truth(folder: Path, **changes: Any) -> Path:
    """Three images with five objects each and one without any; a crowd; two categories."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(15):
        x, y = rng.uniform(0, 70, 2)
        w, h = rng.uniform((8, 8), (80, 45) if number % 3 else (20, 20))
        keypoints = np.stack([x + rng.uniform(0, w, 17), y + rng.uniform(0, h, 17), rng.integers(0, 3, 17)], axis=1)
        annotations.append(
            {
                "id": number + 1,
                "image_id": IMAGES[number % 3],
                "category_id": CATEGORY_IDS[number % 2],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": int(number == 6),
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "keypoints": keypoints.flatten().tolist(),
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
            }
            | changes
        )
    content = {
        "info": {},
        "images": [{"id": id, "file_name": f"{id}.jpg", "height": HEIGHT, "width": WIDTH} for id in IMAGES],
        "annotations": annotations,
        "categories": [{"id": id, "name": f"c{id}", "keypoints": list(shapes.KEYPOINT_NAMES)} for id in CATEGORY_IDS],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def outputs(path: Path, task: Task, seed: int = 1) -> list[dict[str, Any]]:
    """A detector's outputs: the truth, shaken, with a false detection and wrong labels in between."""
    rng = np.random.default_rng(seed)
    content = json.loads(path.read_text())
    found = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own] + [[5, 5, 30, 12]]) + rng.normal(0, 2.5, (len(own) + 1, 4))
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        labels = [CATEGORY_IDS.index(a["category_id"]) + 1 for a in own] + [1]
        labels[-1] = 2
        output: dict[str, Any] = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(labels),
            "scores": torch.tensor(rng.uniform(0.1, 1, len(labels)), dtype=torch.float32),
        }
        if task == "segm":
            masks = torch.zeros(len(labels), 1, HEIGHT, WIDTH)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.clip(0).astype(int), strict=True):
                mask[0, y1:y2, x1:x2] = 0.9
                mask[0, y1 : y1 + 2, x1:x2] = 0.5  # not above the threshold
            output["masks"] = masks
        if task == "keypoints":
            points = [np.reshape(a["keypoints"], (17, 3)) for a in own] + [np.full((17, 3), 20.0)]
            shaken = torch.tensor(np.stack(points) + rng.normal(0, 1.5, (len(points), 17, 3)), dtype=torch.float32)
            output["keypoints"] = shaken
            output["keypoints_scores"] = torch.ones(len(points), 17)
        found.append(output)
    return found


def evaluator(path: Path, task: Task) -> CocoEvaluator:
    files = DatasetFiles("tiny", path.parent, path, keeps_ids=False)
    return CocoEvaluator(path, read_categories(files, task), task)


def oracle(path: Path, results: Path, kind: str, image_ids: Any = None) -> COCOeval:
    """pycocotools as its demonstration uses it, on the two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
        comparison = COCOeval(coco, coco.loadRes(str(results)), kind)
        if image_ids is not None:
            comparison.params.imgIds = image_ids
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    return comparison


def assert_equals_oracle(metrics: dict[str, float], stats: np.ndarray[Any, Any]) -> None:
    assert list(metrics) == (BOX_NAMES if len(stats) == 12 else KEYPOINT_NAMES)
    for value, share in zip(metrics.values(), stats, strict=True):
        assert math.isnan(value) if share == -1 else value == 100 * share


@pytest.mark.parametrize("image_ids", [None, [30, 4]])
@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_metrics_are_pycocotools(
    tmp_path: Path, task: Task, image_ids: list[int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = truth(tmp_path)
    subject = evaluator(path, task)
    subject.process(IMAGES[:2], outputs(path, task)[:2])
    subject.process(IMAGES[2:], outputs(path, task)[2:])
    before = json.dumps(subject.results)
    metrics = subject.evaluate(image_ids)
    assert list(metrics) == (["bbox"] if task == "bbox" else ["bbox", task])
    assert json.dumps(subject.results) == before  # pycocotools adds to what it is given
    write_json(tmp_path / "predictions.json", subject.results)
    results = load_results(tmp_path / "predictions.json", path, task)
    for kind, found in metrics.items():
        expected = oracle(path, tmp_path / "predictions.json", kind, image_ids)
        assert_equals_oracle(found, expected.stats)
        assert 5 < found["AP"] < 95
    assert evaluate_results(path, results, task, image_ids) == pytest.approx(metrics[task], nan_ok=True, abs=0)
    assert capsys.readouterr().out == ""


def test_results_by_hand(tmp_path: Path) -> None:
    path = truth(tmp_path)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[0, 0, 5:20, 30:50] = 0.5  # not above the threshold
    mask[0, 0, 10:20, 30:50] = 0.51
    output = {
        "boxes": torch.tensor([[10.0, 20.0, 30.5, 60.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
        "masks": mask,
    }
    subject = evaluator(path, "segm")
    subject.process(torch.tensor([9]), [output])
    (result,) = json.loads(json.dumps(subject.results))
    segmentation = result.pop("segmentation")
    assert result == {"image_id": 9, "category_id": 5, "bbox": [10, 20, 20.5, 40], "score": 0.75}
    decoded = rle.decode(segmentation)
    assert decoded.sum() == 200 and decoded[10:20, 30:50].all()
    without_masks = {key: value for key, value in output.items() if key != "masks"}
    other = evaluator(path, "segm")
    other.process([9], [{**without_masks, "rle": [segmentation]}])
    assert other.results == subject.results


def test_keypoints_by_hand(tmp_path: Path) -> None:
    subject = evaluator(truth(tmp_path), "keypoints")
    points = torch.arange(51.0).reshape(1, 17, 3)
    one = {
        "boxes": torch.ones(1, 4),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "keypoints": points,
    }
    subject.process([4], [one])
    assert subject.results[0]["keypoints"][:6] == [0, 1, 1, 3, 4, 1] and len(subject.results[0]["keypoints"]) == 51


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_no_predictions_are_zero(tmp_path: Path, task: Task) -> None:
    subject = evaluator(truth(tmp_path), task)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "scores": torch.zeros(0),
    }
    subject.process([4], [empty | {"masks": torch.zeros(0, 1, 9, 9), "keypoints": torch.zeros(0, 17, 3)}])
    for metrics in subject.evaluate().values():
        assert metrics["AP"] == metrics["AP50"] == 0


def test_undefined_metrics_are_nan(tmp_path: Path) -> None:
    path = truth(tmp_path, area=5000.0)  # neither small nor large
    subject = evaluator(path, "bbox")
    subject.process(IMAGES, outputs(path, "bbox"))
    metrics = subject.evaluate()["bbox"]
    assert math.isnan(metrics["APs"]) and math.isnan(metrics["ARl"])
    assert metrics["APm"] == pytest.approx(metrics["AP"], abs=20)


def test_per_category_averages_to_the_whole(tmp_path: Path) -> None:
    path = truth(tmp_path)
    subject = evaluator(path, "segm")
    subject.process(IMAGES, outputs(path, "segm"))
    by_kind, metrics = subject.per_category(), subject.evaluate()
    for kind in ("bbox", "segm"):
        assert list(by_kind[kind]) == ["c2", "c5"]
        assert np.mean(list(by_kind[kind].values())) == pytest.approx(metrics[kind]["AP"])
    of_c5 = [result for result in subject.results if result["category_id"] == 5]
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 5]
    path.write_text(json.dumps(content))  # c5 alone
    assert by_kind["bbox"]["c5"] == pytest.approx(evaluate_results(path, of_c5, "bbox")["AP"])
    assert math.isnan(evaluator(path, "bbox").per_category()["bbox"]["c2"])


def test_the_whole_and_the_categories_come_of_one_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = truth(tmp_path)
    subject = evaluator(path, "segm")
    subject.process(IMAGES, outputs(path, "segm"))
    expected = subject.evaluate([4, 9]), subject.per_category([4, 9])
    runs = []
    accumulate = COCOeval.accumulate
    monkeypatch.setattr(COCOeval, "accumulate", lambda self: runs.append(self) or accumulate(self))
    assert repr(subject.evaluate_by_category([4, 9])) == repr(expected)  # as NaN equals nothing
    assert len(runs) == 2  # boxes and masks


@pytest.mark.parametrize("first", [0, 1])
def test_annotations_may_be_numbered_from_zero(tmp_path: Path, first: int) -> None:
    path = truth(tmp_path)
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"], start=first):
        annotation["id"] = number
    path.write_text(json.dumps(content))
    exact = [{key: a[key] for key in ("image_id", "category_id", "bbox")} for a in content["annotations"]]
    assert evaluate_results(path, [{**result, "score": 0.9} for result in exact], "bbox")["AP"] == 100


def test_own_datasets_need_not_say_iscrowd_area_and_num_keypoints(tmp_path: Path) -> None:
    path = truth(tmp_path, iscrowd=0)
    subject = evaluator(path, "keypoints")
    subject.process(IMAGES, outputs(path, "keypoints"))
    full = subject.evaluate()
    content = json.loads(path.read_text())
    del content["info"]
    for annotation in content["annotations"]:
        for key in ("iscrowd", "area", "num_keypoints"):
            del annotation[key]
    path.write_text(json.dumps(content))
    assert subject.evaluate() == full


def test_truth_without_what_the_task_needs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"truth\.json: annotation 1: bbox \[1, 2\], expected four .* \(and 14 more"):
        evaluate_results(truth(tmp_path, bbox=[1, 2]), [], "bbox")


def test_truth_without_a_mask_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = truth(tmp_path)
    content = json.loads(path.read_text())
    results = [result for image, output in zip(IMAGES, outputs(path, "segm"), strict=True)
               for result in to_results(image, output, evaluator(path, "segm").categories, "segm")]  # fmt: skip
    expected = evaluate_results(path, results, "segm")
    bare = {"id": 99, "image_id": 4, "category_id": 2, "bbox": [1, 1, 9, 9], "segmentation": [[1, 2, 3, 4]]}
    path.write_text(json.dumps({**content, "annotations": [*content["annotations"], bare]}))
    assert evaluate_results(path, results, "segm") == pytest.approx(expected, nan_ok=True, abs=0)
    assert "left out of the evaluation: objects without a mask (1)" in caplog.text


def test_more_objects_than_are_counted_are_told_and_the_limit_can_be_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [[10 * (i % 20), 10 * (i // 20), 8, 8] for i in range(150)]
    objects = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    path = tmp_path / "many.json"
    images = [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}]
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}))
    perfect = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)]
    found = evaluate_results(path, perfect, "bbox")
    assert found["AR100"] == pytest.approx(100 * 100 / 150) and found["AP"] < 70
    assert "1 image with more than 100 objects, up to 150" in caplog.text
    caplog.clear()
    raised = evaluate_results(path, perfect, "bbox", detections=150)
    assert raised["AP"] == raised["AR150"] == 100 and "AR100" not in raised and not caplog.messages
    assert evaluate_results(path, perfect, "bbox", detections=50) == pytest.approx(found, nan_ok=True)


def test_boxes_of_categories_without_keypoints_count_for_nothing_where_keypoints_are_found(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    points = [5, 5, 2, 8, 8, 2]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "keypoints": points},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [50, 50, 20, 20]},
        ],
        "categories": [{"id": 1, "name": "sheep", "keypoints": ["nose", "tail"]}, {"id": 2, "name": "dog"}],
    }
    path.write_text(json.dumps(content))
    categories = read_categories(DatasetFiles("own", tmp_path, path, keeps_ids=False), "keypoints")
    subject = CocoEvaluator(path, categories, "keypoints")
    subject.results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, 20, 20], "keypoints": points}]
    found = subject.evaluate()
    assert (found["bbox"]["AP"], found["keypoints"]["AP"]) == (pytest.approx(100), pytest.approx(100))


def test_results_of_unknown_categories_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = truth(tmp_path)
    image = json.loads(path.read_text())["images"][0]["id"]
    (tmp_path / "found.json").write_text(
        json.dumps([{"image_id": image, "category_id": 77, "score": 0.5, "bbox": [0, 0, 9, 9]}])
    )
    load_results(tmp_path / "found.json", path, "bbox")
    assert "1 result with a category_id that" in caplog.text and "as 77, count for nothing" in caplog.text


def test_reset_and_wrong_labels(tmp_path: Path) -> None:
    path = truth(tmp_path)
    subject = evaluator(path, "bbox")
    subject.process(IMAGES, outputs(path, "bbox"))
    subject.reset()
    assert subject.results == []
    for label in (-1, 3):
        one = {"boxes": torch.ones(1, 4), "labels": torch.tensor([label]), "scores": torch.ones(1)}
        with pytest.raises(ValueError, match=f"label {label}, expected 1 to 2"):
            subject.process([4], [one])


def test_the_background_makes_no_result(tmp_path: Path) -> None:
    subject = evaluator(truth(tmp_path), "bbox")
    output = {"boxes": torch.ones(3, 4), "labels": torch.tensor([0, 2, 0]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    subject.process([4], [output])
    assert [result["score"] for result in subject.results] == pytest.approx([0.8])
    named = named_results(output, subject.categories)
    assert [(found["category"], found["category_id"]) for found in named] == [("c5", 5)]


GOOD = {"image_id": 4, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("results", "task", "message"),
    [
        ({"results": []}, "bbox", "expected a list of results, got dict"),
        ([GOOD, [1]], "bbox", "result 1 lacks a key"),
        ([GOOD], "segm", "result 0 lacks a key, expected .*segmentation"),
        ([GOOD | {"image_id": 5}], "bbox", "result 0 has the image_id 5"),
        ([GOOD | {"image_id": [4]}], "bbox", r"result 0 has the image_id \[4\]"),
        ([GOOD | {"category_id": "cat"}], "bbox", "result 0 has the category_id 'cat'"),
        ([GOOD | {"score": float("nan")}], "bbox", "result 0 has the score nan"),
        ([GOOD | {"bbox": [1, 2, 3]}], "bbox", "result 0 has bbox"),
        ([GOOD | {"keypoints": [1, 2, 3]}], "keypoints", "expected 51 numbers"),
        ([GOOD | {"segmentation": [[1, 2, 3, 4, 5, 6]]}], "segm", "result 0 has no RLE"),
        (
            [GOOD | {"segmentation": {"size": [9, 9], "counts": "a"}}],
            "segm",
            r"size \[9, 9\], expected \[120, 160\]",
        ),
    ],
)
def test_wrong_results_name_the_file(tmp_path: Path, results: Any, task: Task, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"wrong\.json: .*{message}"):
        load_results(path, truth(tmp_path), task)


def test_broken_results_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("[{")
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        load_results(path, truth(tmp_path), "bbox")


@pytest.mark.parametrize(("task", "prefix"), [("segm", "instances"), ("keypoints", "person_keypoints")])
def test_real_annotations(real_data: Path, tmp_path: Path, task: Task, prefix: str) -> None:
    path = real_data / "coco" / "annotations" / f"{prefix}_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    rng = np.random.default_rng(0)
    results = []
    for annotation in coco.anns.values():
        encoded = coco.annToRLE(annotation)
        result = {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "score": rng.uniform(),
            "bbox": (np.array(annotation["bbox"]) + rng.normal(0, 3, 4)).tolist(),
            "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
        }
        if task == "keypoints":
            result["keypoints"] = (np.array(annotation["keypoints"]) + rng.normal(0, 3, 51)).tolist()
        results.append(result)
    write_json(tmp_path / "results.json", results)
    subject = CocoEvaluator(
        path, read_categories(DatasetFiles("coco", real_data, path, keeps_ids=True), "bbox"), task
    )
    subject.results = load_results(tmp_path / "results.json", path, task)
    for kind, metrics in subject.evaluate().items():
        assert_equals_oracle(metrics, oracle(path, tmp_path / "results.json", kind).stats)


def test_precision_recall_curves_by_hand(tmp_path: Path) -> None:
    """Of category 1 two objects, found exactly and with IoU 0.6, a false detection between them; of 2 one object,
    missed; of 3 none."""
    boxes = [(1, [0, 0, 10, 10]), (1, [50, 50, 10, 10]), (2, [20, 20, 10, 10])]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "annotations": [{"id": n, "image_id": 1, "category_id": c, "bbox": b} for n, (c, b) in enumerate(boxes)],
        "categories": [{"id": id, "name": name} for id, name in ((1, "cup"), (2, "hat"), (3, "key"))],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    found = [(0.9, [0, 0, 10, 10]), (0.8, [80, 80, 10, 10]), (0.7, [50, 50, 10, 6])]
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for score, box in found]

    curves = precision_recall(path, results, "bbox")
    assert list(curves.by_category) == ["cup", "hat"]
    cup = np.where(np.arange(101) <= 50, 1.0, 2 / 3)  # at IoU 0.5: recalls 0.5 and 1, of one and three detections
    np.testing.assert_allclose(curves.by_category["cup"], cup)
    assert not curves.by_category["hat"].any()
    np.testing.assert_allclose(curves.mean[0.5], cup / 2)
    np.testing.assert_allclose(curves.mean[0.75], np.where(np.arange(101) <= 50, 0.5, 0.0))


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_the_area_under_the_curve_is_average_precision(task: Task, tmp_path: Path) -> None:
    path = truth(tmp_path)
    subject = evaluator(path, task)
    subject.process(IMAGES, outputs(path, task))
    curves = precision_recall(path, subject.results, task)
    metrics = subject.evaluate()[task]
    assert [100 * curves.mean[iou].mean() for iou in (0.5, 0.75)] == pytest.approx([metrics["AP50"], metrics["AP75"]])


def test_curves_count_as_many_detections_as_are_asked_for(tmp_path: Path) -> None:
    boxes = [[10 * column, 10 * row, 9, 9] for row in range(15) for column in range(10)]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 200, "width": 200}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cup"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - n / 200} for n, box in enumerate(boxes)]
    found = [precision_recall(path, results, "bbox", detections=most).mean[0.5].mean() for most in (None, 150)]
    assert found == pytest.approx([67 / 101, 1])  # 100 of 150 objects reach recalls up to 0.66


def test_without_objects_there_are_no_curves(tmp_path: Path) -> None:
    path = truth(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(ValueError, match=r"truth.json: no objects"):
        precision_recall(path, [], "bbox")


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_results_become_the_outputs_that_they_were_made_of(task: Task, tmp_path: Path) -> None:
    path = truth(tmp_path)
    categories = read_categories(DatasetFiles("t", tmp_path, path, keeps_ids=False), task)
    for output in outputs(path, task):
        results = to_results(4, output, categories, task)
        again = to_output(results, categories)
        torch.testing.assert_close(again["boxes"], output["boxes"])
        torch.testing.assert_close(again["scores"], output["scores"])
        assert torch.equal(again["labels"], output["labels"])
        assert ("masks" in again, "keypoints" in again) == (task == "segm", task == "keypoints")
        if task == "segm":
            assert torch.equal(again["masks"].bool(), output["masks"] > 0.5)
        if task == "keypoints":
            torch.testing.assert_close(again["keypoints"][..., :2], output["keypoints"][..., :2])
    with pytest.raises(ValueError, match=r"unknown categories: \[77\]"):
        to_output([{**results[0], "category_id": 77}], categories)
    nothing = to_output([], categories)
    assert (nothing["boxes"].shape, nothing["labels"].dtype) == ((0, 4), torch.int64)
