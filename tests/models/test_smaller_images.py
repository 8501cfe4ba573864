"""Detectors for smaller images: the same places and regions of the scene, by torchvision's own anchors and levels."""

import pytest
import torch
from detectors import ALL_KINDS, frames, tiny_detector
from torchvision.models.detection.image_list import ImageList

from norton_det.models.parts import regions
from norton_det.models.settings import read_settings
from norton_det.models.smaller_images import (
    at_places,
    for_smaller_images,
    pyramid_at_places,
    said_at_places,
    share_of_images,
    shrink_batch,
)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_settings_shrink_with_the_images_and_the_detector_stays_as_it_was(kind):
    detector = tiny_detector(kind)
    before = read_settings(detector)
    smaller = for_smaller_images(detector, 0.5)
    assert read_settings(detector) == before
    changed = {name for name, value in read_settings(smaller).items() if value != before[name]}
    anchors = {name for name in before if name.endswith("anchor_generator")}
    poolers = {name for name in before if name.endswith("roi_pool")}
    assert changed == {"min_size", "max_size", *anchors, *poolers}
    assert share_of_images(smaller, detector) == 0.5
    assert all(torch.equal(value, smaller.state_dict()[name]) for name, value in detector.state_dict().items())
    detector.transform.min_size, detector.transform.max_size = (64,), 80
    smaller.transform.min_size, smaller.transform.max_size = (32,), 40
    assert smaller.eval()(frames(1))[0].keys() == detector.eval()(frames(1))[0].keys()


@pytest.mark.parametrize("share", [0, -1, 1.2, float("nan")])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
        for_smaller_images(tiny_detector("fcos"), share)


def test_no_side_of_an_image_becomes_nothing():
    own = read_settings(for_smaller_images(tiny_detector("fcos"), 1e-6))
    assert tuple(own["min_size"]) == (1,) and own["max_size"] == 1


def anchors_of(detector, batch, levels):
    generator = detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator
    return torch.stack(generator(batch, levels))


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "fcos"])
def test_what_is_said_of_an_anchor_is_read_where_the_smaller_detector_has_it(kind):
    """A head that says of each anchor which box it is must say the shrunk boxes at the smaller one's anchors."""
    detector = tiny_detector(kind).eval()
    smaller = for_smaller_images(detector, 0.5)
    batch = ImageList(torch.rand(2, 3, 256, 384), [(256, 384)] * 2)
    seen = shrink_batch(batch, 0.5)
    assert seen.tensors.shape == (2, 3, 128, 192) and seen.image_sizes == [(128, 192)] * 2
    with torch.no_grad():
        levels, ours = ([*one.backbone(of.tensors).values()] for one, of in ((detector, batch), (smaller, seen)))
    boxes, wanted = anchors_of(detector, batch, levels), anchors_of(smaller, seen, ours)
    read = said_at_places(boxes, levels, ours, 0.5)
    assert read.shape == wanted.shape
    inside = torch.cat([torch.full((2, level.shape[2] * level.shape[3]), level.shape[2] > 2) for level in ours], 1)
    inside = inside.repeat_interleave(read.shape[1] // inside.shape[1], 1)
    assert inside.float().mean() > 0.9  # the topmost levels have too few places to lie at the same pixels
    torch.testing.assert_close(read[inside] / 2, wanted[inside], rtol=0, atol=1.0)  # torchvision rounds anchors


def test_a_map_is_read_between_its_places_and_continues_at_its_border():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    maps = torch.stack([rows, columns])[None]
    read = at_places(maps, (5, 6), 0.8)
    torch.testing.assert_close(read[0, 0, :, 0], torch.tensor([0, 1.25, 2.5, 3.75, 5.0]))
    torch.testing.assert_close(read[0, 1, 0], torch.tensor([0, 1.25, 2.5, 3.75, 5.0, 6.25]))
    assert at_places(maps, (9, 9), 0.8)[0, 0, -1, -1] == 5


def test_at_the_same_size_everything_is_as_it_is():
    detector = tiny_detector("faster_rcnn")
    batch = detector.transform(frames(1))[0]
    assert shrink_batch(batch, 1.0) is batch
    pyramid = {"0": torch.rand(1, 4, 5, 6)}
    assert pyramid_at_places(pyramid, pyramid, 1.0)["0"] is pyramid["0"]


def test_regions_choose_the_level_that_their_place_in_the_scene_had():
    detector = tiny_detector("faster_rcnn")
    smaller = for_smaller_images(detector, 0.5)
    box = torch.tensor([[10.0, 20, 150, 130], [0, 0, 30, 40], [0, 0, 500, 480]])

    def levels(one, boxes, side):
        pooler = regions(one)["box"].pooler
        maps = {
            name: torch.zeros(1, 1, side // stride, side // stride)
            for name, stride in zip("0123", (4, 8, 16, 32), strict=True)
        }
        pooler(maps, [boxes], [(side, side)])
        return pooler.map_levels([boxes]).tolist()

    assert levels(smaller, box / 2, 256) == levels(detector, box, 512)
