"""Labels can be read wherever boxes are, limbs tell left from right, and nothing is drawn below the threshold."""

import itertools

import torch

from norton_det.keypoints import COCO_KEYPOINTS, Keypoints
from norton_det.visualization.draw import _overlap, _place_plate, draw_predictions, with_title

NAMES = ["__background__", "dog", "cat"]
GREY = torch.full((3, 120, 160), 128, dtype=torch.uint8)


def prediction(boxes, scores, **more):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "scores": torch.tensor(scores),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        **more,
    }


def test_only_sure_detections_are_drawn():
    unsure = prediction([[10, 10, 60, 60]], [0.4])
    assert torch.equal(draw_predictions(GREY, unsure, NAMES), GREY)
    assert not torch.equal(draw_predictions(GREY, unsure, NAMES, confidence=0.3), GREY)
    assert not torch.equal(draw_predictions(GREY, prediction([[10, 10, 60, 60]], [0.5]), NAMES), GREY)


def test_the_background_which_one_stage_detectors_score_is_not_drawn():
    background = prediction([[10, 10, 60, 60]], [0.9]) | {"labels": torch.tensor([0])}
    assert torch.equal(draw_predictions(GREY, background, NAMES), GREY)


def test_a_title_fits_over_an_upright_picture():
    title = "compressed  123 ms  8.1 frames/s  2.13x"
    for height, width in ((1920, 1080), (432, 768)):
        bar = with_title(torch.zeros(3, height, width, dtype=torch.uint8), title)[:, :-height]
        written = (bar[0] < 200).any(dim=0).nonzero().flatten()
        assert width / 3 < len(range(written[0], written[-1])) < width - 8


def test_plates_of_boxes_in_one_place_stand_apart_and_inside():
    plates = []
    for box in ([20, 30, 90, 100], [22, 31, 90, 100], [21, 30, 91, 99], [150, 0, 160, 10]):
        plates.append(_place_plate(box, (40, 12), (160, 120), plates))
    assert not any(_overlap(a, b) for a, b in itertools.combinations(plates, 2))
    for left, top, right, bottom in plates:
        assert 0 <= left < right <= 160 and 0 <= top < bottom <= 120


def test_a_plate_larger_than_the_image_starts_at_its_corner():
    assert _place_plate([5, 5, 8, 8], (300, 200), (160, 120), [])[:2] == (0, 0)


def test_limbs_of_left_and_right_differ_in_colour():
    points = torch.zeros(1, 17, 3)
    points[0, :, :2] = torch.tensor([80.0, 5.0])
    points[0, 5, :2], points[0, 7, :2] = torch.tensor([30.0, 40.0]), torch.tensor([30.0, 100.0])  # left upper arm
    points[0, 6, :2], points[0, 8, :2] = torch.tensor([130.0, 40.0]), torch.tensor([130.0, 100.0])  # right
    points[0, 9, :2], points[0, 10, :2] = points[0, 7, :2], points[0, 8, :2]
    picture = draw_predictions(GREY, prediction([[0, 0, 159, 119]], [0.9], keypoints=points), NAMES)
    left, right = picture[:, 70, 30], picture[:, 70, 130]
    assert not torch.equal(left, GREY[:, 0, 0]) and not torch.equal(right, GREY[:, 0, 0])
    assert not torch.equal(left, right)


LEFT, MIDDLE, RIGHT = 30, 80, 130  # x of three upright limbs


def limbs(keypoints=None):
    """The colours of three limbs, 0-3, 1-4 and 2-5, on the left, in the middle and on the right; None: not drawn."""
    points = torch.zeros(1, 6, 3)
    for number, x in enumerate((LEFT, MIDDLE, RIGHT)):
        points[0, number, :2], points[0, number + 3, :2] = torch.tensor([x, 40.0]), torch.tensor([x, 100.0])
    found = prediction([[0, 0, 159, 119]], [0.9], keypoints=points)
    picture = draw_predictions(GREY, found, NAMES, keypoints=keypoints)
    assert picture[:, 40, LEFT].tolist() == [255, 255, 255]  # the points are drawn in any case
    colours = [tuple(picture[:, 70, x].tolist()) for x in (LEFT, MIDDLE, RIGHT)]
    return [None if colour == (128, 128, 128) else colour for colour in colours]


def test_own_limbs_are_coloured_by_what_they_become_in_a_mirror():
    names = ["top left", "top", "top right", "left", "bottom", "right"]
    left, middle, right = limbs(Keypoints.named(names, [(0, 3), (1, 4), (2, 5)]))
    assert len({left, middle, right, None}) == 4
    assert limbs(Keypoints(tuple(names), (0, 1, 2, 3, 4, 5), ((0, 3), (2, 5)))) == [middle, None, middle]
    swapped = Keypoints(tuple(names), (0, 4, 2, 5, 1, 3), ((0, 3), (1, 4), (2, 5)))
    assert limbs(swapped) == [middle] * 3


def test_without_a_skeleton_only_the_points_are_drawn():
    assert limbs(Keypoints.named([*"abcdef"])) == [None] * 3
    assert limbs() == [None] * 3


def test_seventeen_keypoints_are_coco_s_where_nothing_else_is_told():
    points = torch.rand(1, 17, 3, generator=torch.Generator().manual_seed(0)) * 100
    found = prediction([[0, 0, 159, 119]], [0.9], keypoints=points)
    untold, coco, other = (
        draw_predictions(GREY, found, NAMES, keypoints=keypoints)
        for keypoints in (None, COCO_KEYPOINTS, Keypoints.named([str(number) for number in range(17)]))
    )
    assert torch.equal(untold, coco) and not torch.equal(untold, other)


def test_a_mask_lets_the_image_through():
    mask = torch.zeros(1, 1, 120, 160)
    mask[..., 40:80, 40:80] = 1
    picture = draw_predictions(GREY, prediction([[20, 20, 100, 100]], [0.9], masks=mask), NAMES)
    inside = picture[:, 60, 60].float()
    assert not torch.equal(inside, torch.full((3,), 128.0))
    assert (inside - 128).abs().max() < 127
    assert torch.equal(picture[:, 90, 90], GREY[:, 0, 0])
