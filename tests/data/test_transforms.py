from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from norton_det.data.reading import Task
from norton_det.data.transforms import (
    evaluation_transforms,
    flip,
    hide_keypoints_outside,
    output_size,
    to_model_targets,
    training_transforms,
)
from norton_det.keypoints import Keypoints

HEIGHT, WIDTH = 40, 60
LEFT_EYE, RIGHT_EYE, LEFT_ANKLE, RIGHT_ANKLE = 1, 2, 15, 16


def sample(task: Task = "keypoints") -> tuple[Tensor, dict[str, Any]]:
    """Two objects; the first one's mask fills its box, its keypoints are scattered, its last two hidden."""
    size = (HEIGHT, WIDTH)
    image = tv_tensors.Image(torch.arange(3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH) % 251, dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 4.0, 25.0, 30.0], [30.0, 10.0, 59.0, 20.0]])
    target: dict[str, Any] = {
        "image_id": 3,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([1, 2]),
        "area": torch.tensor([520.0, 290.0]),
        "iscrowd": torch.tensor([0, 0]),
    }
    if task == "segm":
        masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
        masks[0, 4:30, 5:25] = 1
        masks[1, 10:20, 30:59] = 1
        target["masks"] = tv_tensors.Mask(masks)
    if task == "keypoints":
        points = torch.stack([torch.arange(34.0) % 50, torch.arange(34.0)], dim=1).reshape(2, 17, 2)
        visibility = torch.full((2, 17), 2)
        visibility[0, -2:] = 0
        points[0, -2:] = 0
        target["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=size)
        target["visibility"] = visibility
    return image, target


def test_flip_by_hand() -> None:
    image, target = sample()
    target["visibility"][0, LEFT_EYE] = 1
    flipped_image, flipped = flip(image, target)
    assert torch.equal(flipped_image, image.flip(-1))
    assert flipped["boxes"].tolist() == [[35, 4, 55, 30], [1, 10, 30, 20]]
    before, after = target["keypoints"], flipped["keypoints"]
    assert after[0, 0].tolist() == [59, 0]  # the nose, at (0, 0)
    assert before[0, LEFT_EYE].tolist() == [1, 1] and after[0, RIGHT_EYE].tolist() == [58, 1]
    assert before[1, RIGHT_ANKLE].tolist() == [33, 33] and after[1, LEFT_ANKLE].tolist() == [26, 33]
    assert flipped["visibility"][0, [LEFT_EYE, RIGHT_EYE]].tolist() == [2, 1]


def triangle() -> tuple[Tensor, dict[str, Any]]:
    """An object with three keypoints, which are all that its category has."""
    image, target = sample("bbox")
    points = torch.tensor([[[10.0, 5], [20, 25], [30, 5]]])
    target = {key: value[:1] if isinstance(value, Tensor) else value for key, value in target.items()}
    target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(HEIGHT, WIDTH))
    target["keypoints"] = tv_tensors.KeyPoints(points, canvas_size=(HEIGHT, WIDTH))
    target["visibility"] = torch.tensor([[1, 2, 2]])
    return image, target


@pytest.mark.parametrize("preset", ["flip", "lsj", "photometric"])
def test_own_keypoints_change_places_as_they_are_paired(preset: str) -> None:
    transforms = training_transforms(preset, "keypoints", Keypoints(("first", "tip", "second"), (2, 1, 0)))
    seen = set()
    for seed in range(24):
        torch.manual_seed(seed)
        _, target = transforms(*triangle())
        if len(target["boxes"]) and (target["visibility"] > 0).all():
            first, tip, second = target["keypoints"][0, :, 0].tolist()
            assert first < tip < second  # mirrored or not: what lies left in the image is called first
            seen.add(tuple(target["visibility"][0].tolist()))
    assert seen == {(1, 2, 2), (2, 2, 1)}


def test_keypoints_without_partners_keep_their_names_in_a_mirror() -> None:
    _, flipped = flip(*triangle(), mirrored=(0, 1, 2))
    assert flipped["keypoints"][0].tolist() == [[WIDTH - 11, 5], [WIDTH - 21, 25], [WIDTH - 31, 5]]


def test_a_keypoint_stays_on_its_pixel() -> None:
    image, target = sample()
    flipped_image, flipped = flip(image, target)
    x, y = target["keypoints"][1, 0].long().tolist()
    new_x, new_y = flipped["keypoints"][1, 0].long().tolist()
    assert torch.equal(image[:, y, x], flipped_image[:, new_y, new_x])


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_flip_twice_is_the_identity(task: Task) -> None:
    image, target = sample(task)
    again_image, again = flip(*flip(image, target))
    assert torch.equal(again_image, image)
    assert again.keys() == target.keys()
    assert all(torch.equal(again[key], target[key]) for key in target if key != "image_id")


def test_keypoints_outside_are_hidden_at_the_origin() -> None:
    image, target = sample()
    points = target["keypoints"]
    points[1, :6] = torch.tensor([[-0.1, 5], [5, -0.1], [WIDTH, 5], [5, HEIGHT], [WIDTH - 1, HEIGHT - 1], [0, 0]])
    target["visibility"][1, 6] = 0
    _, hidden = hide_keypoints_outside(image, target)
    assert hidden["visibility"][1].tolist() == [0, 0, 0, 0, 2, 2, 0] + [2] * 10
    assert hidden["keypoints"][1, :4].abs().sum() == 0 and hidden["keypoints"][1, 6].abs().sum() == 0
    assert hidden["keypoints"][1, 4].tolist() == [WIDTH - 1, HEIGHT - 1]


def test_hidden_keypoints_stay_at_the_origin_when_flipped() -> None:
    transforms = training_transforms("flip", "keypoints")
    moved = 0
    for seed in range(10):
        torch.manual_seed(seed)
        _, target = transforms(*sample())
        hidden = target["visibility"] == 0
        assert hidden.sum() == 2 and target["keypoints"][hidden].abs().sum() == 0
        moved += target["boxes"][0, 0].item() == 35
    assert 0 < moved < 10  # some were flipped, some were not


@pytest.mark.parametrize("preset", ["none", "flip", "photometric"])
def test_presets_keep_the_size_and_give_unit_floats(preset: str) -> None:
    torch.manual_seed(0)
    image, target = training_transforms(preset, "segm")(*sample("segm"))
    assert image.dtype == torch.float32 and image.shape == (3, HEIGHT, WIDTH)
    assert image.min() >= 0 and 0.5 < image.max() <= 1
    assert target["masks"].dtype == torch.uint8
    assert output_size(preset) is None


def test_none_and_evaluation_only_scale() -> None:
    image, target = sample("bbox")
    for transforms in (training_transforms("none", "bbox"), evaluation_transforms()):
        scaled, same = transforms(image, target)
        torch.testing.assert_close(scaled.as_subclass(Tensor), image.as_subclass(Tensor) / 255)
        assert torch.equal(same["boxes"], target["boxes"])


def test_photometric_changes_colours_only() -> None:
    boxes = []
    for seed in range(6):
        torch.manual_seed(seed)
        image, target = training_transforms("photometric", "bbox")(*sample("bbox"))
        boxes.append(target["boxes"].tolist())
        plain = sample("bbox")[0] / 255
        assert not torch.equal(image, plain) and not torch.equal(image, plain.flip(-1))
    assert all(box in ([[5, 4, 25, 30], [30, 10, 59, 20]], [[35, 4, 55, 30], [1, 10, 30, 20]]) for box in boxes)


def test_jitter_keeps_boxes_masks_and_counts_together() -> None:
    transforms = training_transforms("lsj", "segm")
    counts = set()
    for seed in range(24):
        torch.manual_seed(seed)
        image, target = sample("segm")
        target["boxes"][1, 0] = 50  # small enough to be lost in a crop
        target["masks"][1, :, :50] = 0
        image, target = transforms(image, target)
        assert image.shape == (3, 1024, 1024) == (3, output_size("lsj"), output_size("lsj"))
        counts.add(len(target["boxes"]))
        assert len({len(target[key]) for key in ("boxes", "masks", "labels", "area", "iscrowd")}) == 1
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() <= 1  # the masks were resized to whole pixels
    assert 2 in counts and min(counts) < 2  # a crop has dropped an object at least once


def test_jitter_makes_images_very_small_and_large() -> None:
    """Where one is small, most of the square is padding; where it is large, none."""
    transforms = training_transforms("lsj", "bbox")
    fill = torch.tensor([124, 116, 104])[:, None, None] / 255
    padding = []
    for seed in range(16):
        torch.manual_seed(seed)
        image, _ = transforms(*sample("bbox"))
        padding.append(((image - fill).abs() < 1e-4).all(dim=0).float().mean().item())
    assert max(padding) > 0.8 and min(padding) < 0.01


def test_jitter_keeps_keypoints_together() -> None:
    transforms = training_transforms("lsj", "keypoints")
    shown, counts = [], set()
    for seed in range(16):
        torch.manual_seed(seed)
        image, target = sample()
        target["boxes"][1, 0] = 50  # small enough to be lost in a crop
        _, target = transforms(image, target)
        counts.add(len(target["boxes"]))
        assert len(target["keypoints"]) == len(target["visibility"]) == len(target["boxes"])
        assert ((target["keypoints"] >= 0) & (target["keypoints"] < 1024)).all()
        assert (target["keypoints"][target["visibility"] == 0] == 0).all()
        shown.append((target["visibility"] > 0).sum().item())
        assert to_model_targets(target)["keypoints"].shape == (len(target["boxes"]), 17, 3)
    assert max(shown) == 32 and min(shown) < 32
    assert counts == {1, 2}


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'flipp'.*'flip'"):
        training_transforms("flipp", "bbox")


def test_model_targets_are_plain() -> None:
    target = sample()[1]
    plain = to_model_targets(target)
    assert {type(value) for value in plain.values()} == {Tensor}
    assert set(plain) == {"image_id", "boxes", "labels", "keypoints"}
    assert plain["keypoints"].dtype == torch.float32 and plain["keypoints"].shape == (2, 17, 3)
    assert plain["keypoints"][1, 3].tolist() == [20, 20, 2]
    assert plain["image_id"].item() == 3 and plain["image_id"].dtype == torch.int64
    assert to_model_targets({"image_id": 9})["image_id"].item() == 9
    assert to_model_targets(sample("segm")[1])["masks"].dtype == torch.uint8
