"""Labels can be read wherever boxes are, limbs tell left from right, and nothing is drawn below the threshold."""

import itertools

import torch

from norton_det.visualization.draw import _overlap, _place_plate, draw_predictions

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


def test_a_mask_lets_the_image_through():
    mask = torch.zeros(1, 1, 120, 160)
    mask[..., 40:80, 40:80] = 1
    picture = draw_predictions(GREY, prediction([[20, 20, 100, 100]], [0.9], masks=mask), NAMES)
    inside = picture[:, 60, 60].float()
    assert not torch.equal(inside, torch.full((3,), 128.0))
    assert (inside - 128).abs().max() < 127
    assert torch.equal(picture[:, 90, 90], GREY[:, 0, 0])
