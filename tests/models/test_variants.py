"""Modules that stand in for torchvision's, against other ways to compute the same."""

import copy

import numpy as np
import pytest
import torch
from detectors import tiny_detector
from of_detectron2 import picture
from PIL import Image
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from norton_det.models.settings import write_settings
from norton_det.models.variants import ExactAnchors, LevelRoIAlign, paste_masks, resize_photo, shortest_edge_size


def anchors_of(generator, sizes=((6, 9), (3, 5)), image=(48, 72)):
    levels = [torch.zeros(2, 1, *size) for size in sizes]
    return generator(ImageList(torch.zeros(2, 3, *image), [image, image]), levels)


def test_anchors_lie_where_the_strides_say_and_have_the_area_and_the_ratio():
    sizes, ratios, strides = [(17.0, 23.5), (40.0, 51.0)], [(0.5, 3.0)] * 2, (8, 16)
    first, second = anchors_of(ExactAnchors(sizes, ratios, strides, offset=0.25))
    expected = [
        [(0.25 + column) * stride, (0.25 + row) * stride, side / ratio**0.5, side * ratio**0.5]
        for (rows, columns), stride, of_level in (((6, 9), 8, sizes[0]), ((3, 5), 16, sizes[1]))
        for row in range(rows)
        for column in range(columns)
        for ratio in (0.5, 3.0)
        for side in of_level
    ]
    found = torch.cat([(first[:, :2] + first[:, 2:]) / 2, first[:, 2:] - first[:, :2]], dim=1)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert torch.equal(first, second)


def test_anchors_of_whole_halves_are_torchvisions():
    sizes, ratios = ((16,), (32,)), ((1.0,), (1.0,))
    exact = ExactAnchors(sizes, ratios, (8, 16))
    expected = anchors_of(AnchorGenerator(sizes, ratios), sizes=((6, 9), (3, 4)), image=(48, 64))
    assert not torch.equal(anchors_of(exact)[0], expected[0])
    sizes_of_maps = {"sizes": ((6, 8), (3, 4)), "image": (48, 64)}
    assert torch.equal(
        anchors_of(exact, **sizes_of_maps)[0], anchors_of(AnchorGenerator(sizes, ratios), **sizes_of_maps)[0]
    )


def maps(images=2):
    generator = torch.Generator().manual_seed(0)
    return {str(level): torch.randn(images, 4, 64 >> level, 96 >> level, generator=generator) for level in range(3)}


def regions(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) ** 3 * 250 + 0.5], dim=1)


@pytest.mark.parametrize("ratio", [0, 2])
def test_an_aligned_pooler_does_on_each_level_what_torchvisions_function_does(ratio):
    boxes = [regions(), regions(40, seed=1)]
    kind = {"canonical_scale": 56, "canonical_level": 3}
    pooler = LevelRoIAlign(["0", "1", "2"], 5, ratio, aligned=True, **kind)
    found = pooler(maps(), boxes, [(256, 384)] * 2)
    level_of = pooler.map_levels(boxes)
    assert set(level_of.tolist()) == {0, 1, 2}
    for number, (box, level) in enumerate(zip(torch.cat(boxes), level_of.tolist(), strict=True)):
        image = [box[None] if i == int(number >= 60) else torch.zeros(0, 4) for i in range(2)]
        expected = roi_align(maps()[str(level)], image, 5, 0.25 / 2**level, ratio, aligned=True)[0]
        torch.testing.assert_close(found[number], expected, rtol=1e-5, atol=1e-5)


def test_one_that_is_not_aligned_is_torchvisions():
    arguments = maps(), [regions(), regions(40, seed=1)], [(256, 384)] * 2
    assert torch.equal(
        LevelRoIAlign(["0", "1", "2"], 5, 2)(*arguments), MultiScaleRoIAlign(["0", "1", "2"], 5, 2)(*arguments)
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((427, 640), (800, 1199)),
        ((640, 427), (1199, 800)),
        ((500, 333), (1201, 800)),
        ((480, 640), (800, 1067)),
        ((300, 900), (444, 1333)),
        ((800, 800), (800, 800)),
        ((3, 4000), (1, 1333)),
    ],
)
def test_the_shortest_edge_decides_the_size_unless_the_longest_is_too_long(size, expected):
    assert shortest_edge_size(size, 800, 1333) == expected


@pytest.mark.parametrize("size", [(131, 173), (60, 71), (97, 40), (97, 131)])
def test_photos_become_what_pillow_makes_of_them(size):
    photo = picture(97, 131)
    expected = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    found = resize_photo(torch.from_numpy(photo).permute(2, 0, 1) / 255, size)
    off = (255 * found).round().int().permute(1, 2, 0).numpy() - expected
    assert np.abs(off).max() <= 1
    assert (off != 0).mean() < 0.02


def test_a_mask_of_ones_fills_its_box_and_fades_at_its_border():
    boxes = torch.tensor([[2.0, 3.0, 12.0, 9.0], [-4.0, 2.5, 6.0, 7.5], [5.0, 5.0, 5.5, 5.25]])
    pasted = paste_masks(torch.ones(3, 1, 4, 4), boxes, (12, 16))
    assert pasted.shape == (3, 1, 12, 16)
    expected = torch.zeros(12, 16, dtype=torch.bool)
    expected[3:9, 2:12] = True
    assert torch.equal(pasted[0, 0] >= 0.5, expected)
    expected = torch.zeros(12, 16, dtype=torch.bool)
    expected[3:7, :6] = True
    assert torch.equal((pasted[1, 0] > 0.5), expected)
    assert pasted[2, 0].amax() <= 1


def test_masks_are_bilinear_in_their_boxes():
    mask = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    pasted = paste_masks(mask, torch.tensor([[4.0, 2.0, 24.0, 17.0]]), (20, 30))[0, 0]
    for row, column in ((9, 14), (3, 5), (12, 20)):
        y, x = ((at + 0.5 - start) / side * 5 - 0.5 for at, start, side in ((row, 2, 15), (column, 4, 20)))
        low_y, low_x = int(np.floor(y)), int(np.floor(x))
        weights = [[(1 - y % 1) * (1 - x % 1), (1 - y % 1) * (x % 1)], [(y % 1) * (1 - x % 1), (y % 1) * (x % 1)]]
        expected = sum(
            weights[i][j] * float(mask[0, 0, low_y + i, low_x + j])
            for i in (0, 1)
            for j in (0, 1)
            if 0 <= low_y + i < 5 and 0 <= low_x + j < 5
        )
        assert float(pasted[row, column]) == pytest.approx(expected, abs=1e-5)


def test_no_masks_give_no_pictures():
    assert paste_masks(torch.zeros(0, 1, 4, 4), torch.zeros(0, 4), (5, 6)).shape == (0, 1, 5, 6)


@torch.no_grad()
def test_clipping_late_changes_what_nms_sees_beyond_the_image():
    """Two boxes overlap little as they are, much where both are clipped to the image's right border."""
    early = tiny_detector("retinanet", "resnet18", classes=2)
    write_settings(early, {"score_thresh": 0.05})
    late = copy.deepcopy(early)
    write_settings(late, {"clips_late": True})
    anchors = torch.tensor([[40.0, 10, 60, 30], [40, 10, 100, 30], [0, 0, 20, 20], [70, 0, 90, 9]])
    logits = torch.full((1, 4, 2), -50.0)
    logits[0, :, 1] = torch.tensor([2.0, 1.0, 0.5, 0.25])
    said = {"cls_logits": [logits], "bbox_regression": [torch.zeros(1, 4, 4)]}
    [found], [other] = (d.postprocess_detections(said, [[anchors]], [(50, 60)]) for d in (late, early))
    assert found["boxes"].tolist() == [[40, 10, 60, 30], [40, 10, 60, 30], [0, 0, 20, 20]]
    assert other["boxes"].tolist()[:2] == [[40, 10, 60, 30], [0, 0, 20, 20]]
    torch.testing.assert_close(found["scores"], torch.tensor([2.0, 1.0, 0.5]).sigmoid())
    assert found["labels"].tolist() == [1, 1, 1]


@torch.no_grad()
def test_training_targets_follow_the_image():
    detector = tiny_detector("keypoint_rcnn", "resnet18")
    write_settings(detector, {"images": "detectron2", "min_size": [50], "max_size": 200})
    image = torch.rand(3, 40, 60)
    target = {
        "boxes": torch.tensor([[4.0, 8.0, 20.0, 30.0]]),
        "keypoints": torch.tensor([[[4.0, 8.0, 1.0]]]),
        "masks": torch.ones(1, 40, 60, dtype=torch.uint8),
    }
    batch, [found] = detector.transform.train()([image], [target])
    assert batch.image_sizes == [(50, 75)]
    torch.testing.assert_close(found["boxes"], target["boxes"] * 1.25)
    torch.testing.assert_close(found["keypoints"][..., :2], target["keypoints"][..., :2] * 1.25)
    assert found["masks"].shape == (1, 50, 75)
    assert target["boxes"][0, 0] == 4
    assert batch.tensors[0, :, 50:].abs().max() == 0
