import pytest
import torch

from norton_det.deploy.parity import parity


def detections(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


EXPECTED = detections([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], [1, 2, 1], [0.9, 0.8, 0.7])


def test_equal_detections_in_another_order_agree():
    order = torch.tensor([2, 0, 1])
    compared = parity([{name: value[order] for name, value in EXPECTED.items()}], [EXPECTED])
    assert (compared.found, compared.expected, compared.box_max, compared.score_max) == (3, 3, 0, 0)
    assert compared.is_equal


def test_distances_are_the_largest_of_a_boxs_numbers():
    found = detections([[0, 0, 11, 10], [20, 20, 40, 43], [50, 50, 60, 60]], [1, 2, 1], [0.9, 0.8, 0.75])
    compared = parity([found], [EXPECTED])
    assert (compared.box_median, compared.box_max) == (1, 3)
    assert compared.score_max == pytest.approx(0.05)
    assert not compared.is_equal


@pytest.mark.parametrize(("shift", "score", "equal"), [(0.009, 0.90009, True), (0.02, 0.9, False), (0, 0.902, False)])
def test_both_boxes_and_scores_have_to_be_equal(shift, score, equal):
    found = detections([[0, 0, 10, 10 + shift], [20, 20, 40, 40], [50, 50, 60, 60]], [1, 2, 1], [score, 0.8, 0.7])
    assert parity([found], [EXPECTED]).is_equal == equal


def test_another_label_or_another_place_is_not_found_again():
    found = detections([[0, 0, 10, 10], [20, 20, 40, 40], [150, 50, 160, 60]], [2, 2, 1], [0.9, 0.8, 0.7])
    compared = parity([found], [EXPECTED])
    assert (compared.found, compared.expected) == (1, 3)
    assert not compared.is_equal


def test_one_detection_too_many_is_not_equal():
    more = detections([*EXPECTED["boxes"].tolist(), [70, 70, 90, 90]], [1, 2, 1, 2], [0.9, 0.8, 0.7, 0.6])
    compared = parity([more, EXPECTED], [EXPECTED, EXPECTED])
    assert (compared.found, compared.expected, compared.surplus) == (6, 6, 1)
    assert not compared.is_equal


def test_no_detections():
    nothing = detections([], [], [])
    assert parity([nothing], [nothing]).is_equal
    assert parity([nothing], [EXPECTED]).found == 0
