"""Agreement is pycocotools' AP against a reference's findings, on all images or on images drawn anew."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from norton_det.data.catalog import Categories
from norton_det.evaluation.agreement import Findings, agreement_of, collect
from norton_det.evaluation.matches import ap_of, read_matches
from norton_det.keypoints import COCO_KEYPOINTS, Keypoints

HEIGHT, WIDTH, IMAGES = 90, 120, 9
SCORE = 0.5
NAMES = Categories(("__background__", "ant", "bee", "cow"), (0, 4, 7, 9), COCO_KEYPOINTS)
TASKS = ("bbox", "segm", "keypoints")


def output(boxes, labels, scores, task="bbox", points=None):
    """A torchvision output: masks fill the boxes, keypoints lie evenly in them unless given."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    found = {"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores, dtype=torch.float32)}
    if task == "segm":
        found["masks"] = torch.zeros(len(boxes), 1, HEIGHT, WIDTH)
        for mask, (x1, y1, x2, y2) in zip(found["masks"], boxes.clip(0).int().tolist(), strict=True):
            mask[0, y1:y2, x1:x2] = 1
    if task == "keypoints":
        steps = torch.linspace(0, 1, 17)[:, None]
        spread = boxes[:, None, :2] + steps * (boxes[:, None, 2:] - boxes[:, None, :2])
        points = spread if points is None else points
        found["keypoints"] = torch.cat([points, torch.ones(len(boxes), 17, 1)], dim=2)
    return found


def reference_and_detector(task, seed=0):
    """Outputs on images of which the reference sees nothing on the last, and the same shaken, dropped and added to.

    Scores are rounded, so that some are equal within an image and between images.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for image in range(IMAGES):
        count = 0 if image == IMAGES - 1 else int(rng.integers(1, 8))
        corners = rng.uniform(0, (60, 40), (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(6, 48, (count, 2))], axis=1)
        labels = rng.integers(1, 4, count)
        ours.append(output(boxes, labels, rng.uniform(0.1, 1, count).round(1), task))
        kept = rng.uniform(size=count) < 0.8
        false = np.concatenate([corner := rng.uniform(0, 50, (2, 2)), corner + rng.uniform(9, 30, (2, 2))], axis=1)
        shaken = np.concatenate([boxes[kept] + rng.normal(0, 2, (kept.sum(), 4)), false])
        shaken_labels = np.concatenate([labels[kept], rng.integers(1, 4, 2)])
        theirs.append(output(shaken, shaken_labels, rng.uniform(0.05, 1, len(shaken)).round(1), task))
    return ours, theirs


def findings(outputs, categories=NAMES):
    return collect(outputs, categories)


def pycocotools(reference: Findings, detector: Findings, task, images=range(IMAGES)):
    """A COCOeval of a dataset made of the images, each as often as it is named, a copy under an id of its own."""

    def own(found, image, number):
        return [{**r, "image_id": number} for r in found.results if r["image_id"] == image]

    truth, results = [], []
    for number, image in enumerate(images):
        results += own(detector, image, number)
        for r in own(reference, image, number):
            area = rle.area(r["segmentation"]) if task == "segm" else r["bbox"][2] * r["bbox"][3]
            if r["score"] >= SCORE:
                shown = r | {"id": len(truth) + 1, "area": float(area), "iscrowd": 0, "num_keypoints": 17}
                del shown["score"]
                truth.append(shown)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(len(images))],
            "annotations": truth,
            "categories": [{"id": label, "name": NAMES.names[label]} for label in (1, 2, 3)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("task", TASKS)
def test_agreement_is_the_ap_that_pycocotools_computes(task):
    reference, detector = map(findings, reference_and_detector(task))
    found = agreement_of(reference, detector, SCORE, resamples=5).tasks
    assert list(found) == (["bbox"] if task == "bbox" else ["bbox", task])
    for kind, values in found.items():
        stats = pycocotools(reference, detector, kind).stats
        names = ["AP", "AP50", "AP75", *(["APm", "APl"] if kind == "keypoints" else ["APs", "APm", "APl"])]
        assert list(values.metrics) == names
        for name, expected in zip(names, stats, strict=False):
            assert values.metrics[name] == 100 * expected or (expected == -1 and math.isnan(values.metrics[name]))
        assert 5 < values.metrics["AP"] < 90


def test_from_the_matching_score_on_both_find_as_many():
    def of_scores(*scores):
        return findings([output([[10, 10, 40, 40]] * len(scores), [1] * len(scores), scores)])

    reference = of_scores(0.9, 0.6, 0.5, 0.4)
    assert agreement_of(reference, of_scores(0.1, 0.3, 0.7, 0.2), SCORE).matching_score == pytest.approx(0.2)
    assert agreement_of(reference, of_scores(0.7, 0.3), SCORE).matching_score == pytest.approx(0.3)
    assert math.isnan(agreement_of(reference, of_scores(), SCORE).matching_score)


@pytest.mark.parametrize("task", TASKS)
def test_ap_of_images_drawn_anew_is_that_of_a_dataset_of_copies(task):
    reference, detector = map(findings, reference_and_detector(task))
    evaluation = pycocotools(reference, detector, task)
    matches, recalls = read_matches(evaluation), evaluation.params.recThrs
    assert ap_of(matches, np.arange(IMAGES), recalls) / 100 == pytest.approx(evaluation.stats[0], abs=1e-12)
    rng = np.random.default_rng(5)
    for _ in range(8):
        images = np.sort(rng.integers(IMAGES, size=IMAGES))
        expected = pycocotools(reference, detector, task, images.tolist()).stats[0]
        assert ap_of(matches, images, recalls) / 100 == pytest.approx(expected, abs=1e-12)


def test_ap_of_images_without_objects_is_not_a_number():
    reference, detector = map(findings, reference_and_detector("bbox"))
    evaluation = pycocotools(reference, detector, "bbox")
    assert math.isnan(ap_of(read_matches(evaluation), np.array([IMAGES - 1]), evaluation.params.recThrs))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("score", [0.3, 0.5, 0.7])
def test_a_detector_agrees_with_itself_in_full(task, score):
    """Also where it finds the same twice, what has no extent, more than COCO counts, and more below the score."""
    many = 130
    corners = torch.rand(many, 2, generator=torch.Generator().manual_seed(0)) * 60
    boxes = torch.cat([corners, corners + torch.linspace(3, 30, many)[:, None]], dim=1)
    boxes[1], boxes[2, 2:], boxes[3] = boxes[0], boxes[2, :2], torch.tensor([20.1, 20.1, 20.4, 20.4])
    crowded = output(boxes, [1] * many, torch.linspace(1, 0.05, many).tolist(), task)
    outputs = [crowded, *reference_and_detector(task)[0]]
    found = agreement_of(findings(outputs), findings(outputs), score, resamples=20)
    for values in found.tasks.values():
        assert [values.metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([100] * 3)
        assert values.interval == pytest.approx((100, 100))
        assert values.by_category == pytest.approx(dict.fromkeys(values.by_category, 100))
        assert values.by_image == (100,) * len(outputs)


BOX, ELSEWHERE = [10, 10, 40, 40], [60, 50, 90, 80]


def test_what_is_found_where_the_reference_finds_nothing_counts_against_a_detector():
    reference = findings([output([BOX], [1], [0.9]), output([], [], [])])
    silent = findings([output([BOX], [1], [0.6]), output([], [], [])])
    false = findings([output([BOX], [1], [0.6]), output([ELSEWHERE], [1], [0.8])])
    assert agreement_of(reference, silent).tasks["bbox"].metrics["AP"] == pytest.approx(100)
    assert agreement_of(reference, false).tasks["bbox"].metrics["AP"] == pytest.approx(50)


def test_a_category_that_the_reference_does_not_find_does_not_count():
    reference = findings([output([BOX, ELSEWHERE], [1, 2], [0.9, 0.4])])
    detector = findings([output([BOX, ELSEWHERE], [1, 3], [0.9, 0.9])])
    found = agreement_of(reference, detector)
    assert found.tasks["bbox"].by_category == pytest.approx({"ant": 100})
    assert found.tasks["bbox"].metrics["AP"] == pytest.approx(100)
    assert (found.found, found.found_by_category) == (1, {"ant": 1, "bee": 0, "cow": 0})


def test_f1_of_an_image_is_of_what_both_find_from_the_score_on():
    moved = [10, 10, 40, 22]
    reference = [
        output([BOX, ELSEWHERE, BOX], [1, 1, 2], [0.9, 0.5, 0.4]),  # two
        output([BOX], [1], [0.9]),
        output([], [], []),
        output([], [], []),
    ]
    detector = [
        output([BOX, BOX, ELSEWHERE], [1, 2, 1], [0.9, 0.9, 0.3]),  # one is right, one false, one too low
        output([moved], [1], [0.9]),  # overlaps by 0.4
        output([BOX], [1], [0.49]),
        output([BOX], [1], [0.5]),
    ]
    found = agreement_of(findings(reference), findings(detector))
    assert found.tasks["bbox"].by_image == pytest.approx((50, 0, 100, 0))
    assert found.found_by_image == (2, 1, 0, 0)


def test_the_interval_is_that_of_the_drawn_images():
    reference, detector = map(findings, reference_and_detector("bbox"))
    one, same, other = (agreement_of(reference, detector, seed=seed).tasks["bbox"] for seed in (0, 0, 1))
    assert one == same
    assert one.interval != other.interval
    low, high = one.interval
    assert low + 1 < one.metrics["AP"] < high - 1
    alike = findings([output([BOX, ELSEWHERE], [1, 1], [0.9, 0.9])] * 6)
    half = findings([output([BOX], [1], [0.9])] * 6)
    values = agreement_of(alike, half).tasks["bbox"]
    assert values.interval == pytest.approx((values.metrics["AP"],) * 2)
    assert values.metrics["AP"] == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0, 0.01 .. 0.5


def test_the_interval_lies_around_ap_also_where_categories_are_rare():
    """Of which AP on images drawn anew is higher on average."""
    names = Categories(("__background__", *map(str, range(60))), tuple(range(61)))
    rng = np.random.default_rng(0)
    reference, detector = [], []
    for _ in range(30):
        corners = rng.uniform(0, 50, (8, 2))
        boxes, labels = np.concatenate([corners, corners + 30], axis=1), rng.integers(1, 61, 8)
        reference.append(output(boxes, labels, [0.9] * 8))
        detector.append(output(boxes + rng.normal(0, 4, (8, 4)), labels, rng.uniform(0.1, 1, 8)))
    values = agreement_of(findings(reference, names), findings(detector, names)).tasks["bbox"]
    assert np.mean(values.interval) == pytest.approx(values.metrics["AP"], abs=0.5)


def test_categories_are_matched_by_name(caplog):
    reference, detector = reference_and_detector("bbox")
    expected = agreement_of(findings(reference), findings(detector))
    turned = Categories(("__background__", "cow", "hen", "ant", "bee"), (0, 1, 2, 3, 4))
    labels = torch.tensor([0, 3, 4, 1])
    renamed = [{**each, "labels": labels[each["labels"]]} for each in detector]
    assert agreement_of(findings(reference), findings(renamed, turned)) == expected
    assert "the reference lacks hen" in caplog.text


def test_only_what_both_find_is_compared():
    boxes, masks = reference_and_detector("bbox")[0], reference_and_detector("segm")[1]
    assert list(agreement_of(findings(boxes), findings(masks)).tasks) == ["bbox"]
    assert list(agreement_of(findings(masks), findings(boxes)).tasks) == ["bbox"]


def test_what_cannot_be_compared_is_refused():
    some = findings([output([BOX], [1], [0.9])])
    with pytest.raises(ValueError, match=r"nothing of a score of at least 0\.95 on 1 images"):
        agreement_of(some, some, score=0.95)
    others = findings([output([BOX], [1], [0.9])], Categories(("__background__", "hen"), (0, 1)))
    with pytest.raises(ValueError, match=r"the reference lacks hen; the detector lacks ant, bee, cow"):
        agreement_of(some, others)
    with pytest.raises(ValueError, match=r"findings on 2 images, expected 1"):
        agreement_of(some, findings([output([], [], [])] * 2))
    points = findings([output([BOX], [1], [0.9], "keypoints")])
    named = Keypoints.named([f"p{i}" for i in range(17)])
    renamed = Findings(points.results, 1, Categories(NAMES.names, NAMES.ids, named), "keypoints")
    with pytest.raises(ValueError, match=r"the detector's keypoints are p0, .*, expected the reference's, nose"):
        agreement_of(points, renamed)
