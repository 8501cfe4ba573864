"""A consensus of views: each view shows the image where it says, and what they have in common is kept."""

import numpy as np
import pytest
import torch
from detectors import frames, tiny_detector
from pycocotools import mask as rle
from test_agreement import HEIGHT, NAMES, WIDTH, findings, output

import norton_det
from norton_det.data.catalog import Categories
from norton_det.evaluation.agreement import agreement_of
from norton_det.evaluation.consensus import VIEWS, Shown, View, consensus
from norton_det.keypoints import COCO_KEYPOINTS

BOXES = torch.tensor([[10.0, 12, 40, 50], [60, 20, 100, 80]])
PLAIN, MIRRORED = View(False, 1.0), View(True, 1.0)


def shown(view, count=1):
    seen = Shown([torch.rand(3, HEIGHT, WIDTH)] * count, view)
    list(seen)
    return seen


def mirrored(outputs, width=WIDTH):
    """What a detector would say of the mirrored image."""
    turned = []
    for one in outputs:
        x1, y1, x2, y2 = one["boxes"].T
        changed = {**one, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
        if "masks" in one:
            changed["masks"] = one["masks"].flip(3)
        if "keypoints" in one:
            changed["keypoints"] = one["keypoints"][:, list(COCO_KEYPOINTS.flip)].clone()
            changed["keypoints"][..., 0] = width - changed["keypoints"][..., 0]
        turned.append(changed)
    return turned


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_the_whole_image_in_its_share_of_the_picture(view):
    image = torch.rand(3, 40, 60)
    seen = Shown([image], view)
    [picture] = seen
    assert picture.shape[1:] == (round(40 / view.share), round(60 / view.share))
    part = picture[:, :40, :60]
    torch.testing.assert_close(part.flip(2) if view.mirrored else part, image)
    if view.share < 1:
        torch.testing.assert_close(picture[:, 40:].amax((1, 2)), picture[:, 40:].amin((1, 2)))
    assert seen.sizes == {0: (40, 60)}


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_what_all_views_find_alike_is_found_where_it_lies(task):
    plain = [output(BOXES, [1, 2], [0.9, 0.7], task)]
    seen = [findings(plain), findings(mirrored(plain))]
    found = consensus(seen, [shown(PLAIN), shown(MIRRORED)], 0.5)
    for result, expected in zip(found.results, seen[0].results, strict=True):
        assert result["score"] == pytest.approx(expected["score"])
        assert result["bbox"] == pytest.approx(expected["bbox"], abs=1e-4)
        if task == "segm":
            both = [rle.decode(each["segmentation"]) for each in (result, expected)]
            np.testing.assert_array_equal(*both)
        if task == "keypoints":
            assert result["keypoints"] == pytest.approx(expected["keypoints"], abs=1e-4)


def test_boxes_are_means_by_score_and_one_view_alone_counts_for_its_share():
    first = findings([output([[10, 10, 50, 50], [70, 10, 90, 30]], [1, 1], [0.9, 0.8])])
    second = findings([output([[14, 10, 54, 50]], [1], [0.3])])
    views = [shown(PLAIN), shown(PLAIN)]
    [both, alone] = consensus([first, second], views, 0.3).results
    assert both["bbox"] == pytest.approx([0.75 * 10 + 0.25 * 14, 10, 40, 40])
    assert (both["score"], alone["score"]) == (pytest.approx(0.6), pytest.approx(0.4))
    assert [result["score"] for result in consensus([first, second], views, 0.5).results] == [both["score"]]


def test_other_categories_two_of_one_view_and_distant_boxes_are_other_objects():
    near = [[10, 10, 50, 50], [12, 10, 52, 50]]
    one_view = findings([output(near, [1, 1], [0.9, 0.8])])
    assert len(consensus([one_view], [shown(PLAIN)], 0.1).results) == 2
    others = [output([near[0]], [2], [0.9]), output([[30, 30, 70, 70]], [1], [0.9])]
    for other in others:
        views = [findings([output([near[0]], [1], [0.9])]), findings([other])]
        assert len(consensus(views, [shown(PLAIN)] * 2, 0.1).results) == 2


def test_what_lies_outside_the_image_in_a_smaller_view_is_cut_off():
    view = shown(View(False, 0.5))
    seen = findings([output([[100, 10, 150, 50], [130, 10, 150, 50]], [1, 1], [0.9, 0.9])])
    [kept] = consensus([seen], [view], 0.5).results
    assert kept["bbox"] == pytest.approx([100, 10, WIDTH - 100, 40])


def test_a_detector_agrees_with_itself_to_100_and_others_in_shares_of_its_own():
    own = [output(BOXES, [1, 2], [0.9, 0.7]), output(BOXES[:1], [1], [0.6])]
    views = [findings(own), findings(mirrored([output(BOXES[:1], [1], [0.9]), output(BOXES[:1], [1], [0.8])]))]
    truth = consensus(views, [shown(PLAIN, 2), shown(MIRRORED, 2)], 0.5)
    assert agreement_of(views[0], views[0], truth=truth).tasks["bbox"].metrics["AP"] == pytest.approx(100)
    half = findings([output(BOXES[:1], [1], [0.9]), output([], [], [])])
    alone = agreement_of(truth, half).tasks["bbox"]
    shares = agreement_of(views[0], half, truth=truth).tasks["bbox"]
    whole = agreement_of(truth, views[0]).tasks["bbox"]
    assert shares.metrics["AP"] == pytest.approx(100 * alone.metrics["AP"] / whole.metrics["AP"])
    assert shares.by_category == pytest.approx(
        {name: 100 * ap / whole.by_category[name] for name, ap in alone.by_category.items()}
    )
    assert shares.interval[0] <= shares.metrics["AP"] <= shares.interval[1]
    assert shares.by_image == alone.by_image


@pytest.mark.parametrize("kind", ["mask_rcnn", "fcos"])
def test_a_real_detector_agrees_with_itself_and_less_with_another(kind):
    """Also one with random weights that finds nothing twice, as this FCOS."""
    detector, images = tiny_detector(kind, "resnet18"), frames(3)
    other = tiny_detector(kind, "resnet18", seed=1)
    found = norton_det.agreement(detector, detector, images, 0.1)
    assert all(task.metrics["AP"] == pytest.approx(100) for task in found.tasks.values())
    assert norton_det.agreement(detector, other, images, 0.1).tasks["bbox"].metrics["AP"] < 60


def test_names_stay_those_of_the_detector():
    names = Categories(("__background__", "ant"), (0, 4), None)
    seen = findings([output(BOXES[:1], [1], [0.9])], names)
    assert consensus([seen], [shown(PLAIN)], 0.5).categories == names != NAMES
