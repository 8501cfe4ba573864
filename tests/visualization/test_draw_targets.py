import torch

from norton_det.keypoints import Keypoints
from norton_det.visualization.draw import category_colour, draw_targets

NAMES = ["__background__", "dog", "cat"]
BLACK = torch.zeros(3, 100, 120, dtype=torch.uint8)


def target(**more):
    return {"boxes": torch.tensor([[20.0, 30, 60, 80]]), "labels": torch.tensor([2]), **more}


def test_no_objects_leave_the_image():
    picture = draw_targets(BLACK, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}, NAMES)
    assert torch.equal(picture, BLACK)


def test_a_box_has_the_colour_of_its_category():
    picture = draw_targets(BLACK, target(), NAMES)
    assert tuple(picture[:, 80, 40].tolist()) == category_colour(2)
    assert not picture[:, 35:75, 25:55].any()
    assert not BLACK.any()


def test_a_mask_is_filled():
    mask = torch.zeros(1, 100, 120, dtype=torch.uint8)
    mask[0, 40:60, 30:50] = 1
    picture = draw_targets(BLACK, target(masks=mask), NAMES)
    assert picture[:, 40:60, 30:50].any(dim=0).all()
    assert not picture[:, 62:75, 25:55].any()


def test_only_visible_keypoints_are_drawn():
    keypoints = torch.zeros(1, 17, 3)
    keypoints[0, 0] = torch.tensor([40, 50, 2])
    keypoints[0, 7] = torch.tensor([100, 50, 0])
    picture = draw_targets(BLACK, target(keypoints=keypoints), NAMES)
    assert picture[:, 50, 40].tolist() == [255, 255, 255]
    assert not picture[:, 40:60, 90:110].any()
    assert not picture[:, :10, :10].any()


def test_a_skeleton_joins_visible_keypoints_only():
    keypoints = torch.tensor([[[30.0, 40, 2], [70, 40, 1], [50, 90, 0]]])
    bones = Keypoints.named(["a", "b", "c"], [(0, 1), (1, 2)])
    picture = draw_targets(BLACK, target(keypoints=keypoints), NAMES, bones)
    assert picture[:, 40, 50].any()
    assert not picture[:, 60:70, 55:60].any()
    assert not draw_targets(BLACK, target(keypoints=keypoints), NAMES)[:, 40, 45:55].any()
