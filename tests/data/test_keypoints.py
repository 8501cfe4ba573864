"""Keypoints of any dataset: what becomes of each in a mirror, and what is refused."""

import pytest

from norton_det.keypoints import COCO_KEYPOINTS, Keypoints, mirrored, parse_keypoints

CORNERS = ["top left", "top right", "bottom right", "bottom left"]


def partners(names: list[str]) -> dict[str, str]:
    """Name by name what each becomes, without those that stay as they are."""
    return {name: names[index] for name, index in zip(names, mirrored(names), strict=True) if names[index] != name}


def both_ways(*pairs: tuple[str, str]) -> dict[str, str]:
    return {**dict(pairs), **{right: left for left, right in pairs}}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("eye-left", "eye-right"),
        ("top left", "top right"),
        ("upper_left_corner", "upper_right_corner"),
        ("LeftWrist", "RightWrist"),
        ("HIP_LEFT", "HIP_RIGHT"),
        ("L_paw", "R_paw"),
        ("paw.l", "paw.r"),
        ("left eye, left corner", "right eye, right corner"),
        ("L", "R"),
    ],
)
def test_the_other_side_is_found_by_name(left: str, right: str) -> None:
    assert partners(["nose", right, "tail", left]) == both_ways((left, right))


@pytest.mark.parametrize(
    "names",
    [
        ["k0", "k1", "k2", "k3"],
        ["left_eye", "nose"],  # no partner
        ["lx", "rx"],  # the letters are part of a word
        ["l1", "r1"],
        ["collar", "corral"],
        ["left_eye", "Right_eye"],
        ["left_eye", "right eye"],
    ],
)
def test_names_without_a_sure_partner_stay_as_they_are(names: list[str]) -> None:
    assert mirrored(names) == tuple(range(len(names)))


def test_coco_s_seventeen_are_a_nose_and_eight_pairs_of_left_and_right() -> None:
    assert COCO_KEYPOINTS.count == 17
    assert COCO_KEYPOINTS.flip == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert len(COCO_KEYPOINTS.skeleton) == 19


def test_given_pairs_replace_those_of_the_names() -> None:
    corners = Keypoints.named(CORNERS)
    assert corners.flip == (1, 0, 3, 2)
    assert corners.with_pairs([["top left", "bottom left"]]).flip == (3, 1, 2, 0)
    assert corners.with_pairs([]).flip == (0, 1, 2, 3)
    assert corners.with_pairs([["top left", "bottom left"]]).names == tuple(CORNERS)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["top left", "middle"]], "no keypoint 'middle', expected names of top left, top right, "),
        ([["top left", "top right"], ["top left", "bottom left"]], "'top left' is named twice"),
        ([["top left", "top left"]], "'top left' is named twice"),
    ],
)
def test_pairs_of_unknown_and_repeated_names_are_refused(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        Keypoints.named(CORNERS).with_pairs(pairs)


@pytest.mark.parametrize("skeleton", [None, []])
def test_a_category_may_have_no_skeleton(skeleton: list[list[int]] | None) -> None:
    found = parse_keypoints({"keypoints": ["a", "b"], "skeleton": skeleton})
    assert found == parse_keypoints({"keypoints": ["a", "b"]}) == Keypoints(("a", "b"), (0, 1), ())


def test_a_category_s_skeleton_is_counted_from_one_or_where_a_zero_is_in_it_from_there() -> None:
    from_zero = parse_keypoints({"keypoints": ["left", "right", "tip"], "skeleton": [[0, 2], [2, 1]]})
    assert from_zero.skeleton == ((0, 2), (2, 1))
    found = parse_keypoints({"keypoints": ["left", "right", "tip"], "skeleton": [[1, 3], [3, 2]]})
    assert found == Keypoints(("left", "right", "tip"), (1, 0, 2), ((0, 2), (2, 1)))


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"keypoints": True}, "no list of keypoints, expected names, got True"),
        ({"keypoints": ["a", 2]}, r"no list of keypoints, expected names, got \['a', 2\]"),
        ({"keypoints": ["a", "b", "a"]}, "two keypoints are called 'a'"),
        ({"keypoints": []}, "no keypoints"),
        ({"keypoints": ["a", "b"], "skeleton": [[0, 2]]}, r"skeleton \[\[0, 2\]\], expected pairs .* from 1 to 2"),
        ({"keypoints": ["a", "b"], "skeleton": [[1, 3]]}, r"skeleton \[\[1, 3\]\], expected"),
        ({"keypoints": ["a", "b"], "skeleton": [[1, 2, 1]]}, "skeleton .* expected pairs"),
        ({"keypoints": ["a", "b"], "skeleton": [["a", "b"]]}, "skeleton .* expected pairs"),
        ({"keypoints": ["a", "b"], "skeleton": 5}, "skeleton 5, expected pairs"),
    ],
)
def test_a_category_with_broken_keypoints_is_refused(category: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        parse_keypoints(category)


@pytest.mark.parametrize("flip", [(0,), (1, 1), (1, 2, 0), (-1, 0), (0, 1, 3)])
def test_a_flip_that_a_second_one_does_not_undo_is_refused(flip: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"flip \[.*\], expected pairs"):
        Keypoints(("a", "b", "c")[: max(2, len(flip))], flip)


def test_a_bone_to_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bone \[0, 2\], expected two indices from 0 to 1"):
        Keypoints(("a", "b"), (0, 1), ((0, 2),))
