"""Describes an object's keypoints: their names, which one each becomes in a mirror, and the skeleton between them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_OTHER_SIDE = {
    style(one): style(other)
    for one, other in (("left", "right"), ("right", "left"), ("l", "r"), ("r", "l"))
    for style in (str.lower, str.title, str.upper)
}
_SIDE = re.compile(r"left|Left|LEFT|right|Right|RIGHT|(?<![^\W_])[lLrR](?![^\W_])")


@dataclass(frozen=True)
class Keypoints:
    """Holds the K keypoints that each object of a dataset has.

    Attributes:
        names: each once.
        flip: the index that each keypoint becomes when the image is mirrored; its own where it has no partner.
        skeleton: pairs of indices, from 0, that a drawn bone joins.

    Raises:
        ValueError: no name or one twice, a flip that is not undone by another, an index that no keypoint has.
    """

    names: tuple[str, ...]
    flip: tuple[int, ...]
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no keypoints, expected at least one name")
        if twice := _repeated(self.names):
            raise ValueError(f"two keypoints are called {twice!r}, expected each name once")
        indices = range(self.count)
        if len(self.flip) != self.count or any(
            i not in indices or self.flip[i] != k for k, i in enumerate(self.flip)
        ):
            raise ValueError(f"flip {list(self.flip)}, expected pairs of {self.count} keypoints to change places")
        for bone in self.skeleton:
            if len(bone) != 2 or not all(index in indices for index in bone):
                raise ValueError(f"bone {list(bone)}, expected two indices from 0 to {self.count - 1}")

    @property
    def count(self) -> int:
        """Return K."""
        return len(self.names)

    @classmethod
    def named(cls, names: Sequence[str], skeleton: Sequence[tuple[int, int]] = ()) -> "Keypoints":
        """Build keypoints whose mirror partners are told from their names. Raises ValueError as the class does."""
        return cls(tuple(names), mirrored(names), tuple(skeleton))

    def with_pairs(self, pairs: Sequence[Sequence[str]]) -> "Keypoints":
        """Return the same keypoints, of which only those in the given pairs of names change places in a mirror.

        Raises ValueError for a name that no keypoint has, and for one that stands in the pairs twice.
        """
        named = [name for pair in pairs for name in pair]
        if unknown := [name for name in named if name not in self.names]:
            raise ValueError(f"no keypoint {unknown[0]!r}, expected names of {', '.join(self.names)}")
        if twice := _repeated(named):
            raise ValueError(f"{twice!r} is named twice, expected each keypoint in one pair")
        partners = {one: other for pair in pairs for one, other in (pair, reversed(pair))}
        return replace(self, flip=tuple(self.names.index(partners.get(name, name)) for name in self.names))


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """Return the index that each keypoint becomes in a mirror, told from its name.

    The words left and right, and the letters l and r where no letter or digit stands beside them, are exchanged. A
    keypoint whose name then is another's changes places with it; all others stay as they are.

    Examples:
        >>> mirrored(["nose", "left_eye", "right_eye", "tail-L", "tail-R", "left_horn"])
        (0, 2, 1, 4, 3, 5)
    """
    indices = {name: index for index, name in enumerate(names)}
    exchanged = (_SIDE.sub(lambda side: _OTHER_SIDE[side[0]], name) for name in names)
    return tuple(indices.get(other, index) for index, other in enumerate(exchanged))


def parse_keypoints(category: Mapping[str, Any]) -> Keypoints:
    """Parse the keypoints that a category of a JSON in COCO's format declares. It may have no skeleton, or one that
    counts from 0, as some tools do: it is read so where a 0 is in it.

    Raises ValueError for what is no list of names or no list of pairs, and as `Keypoints` does.
    """
    names, bones = category.get("keypoints"), category.get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"no list of keypoints, expected names, got {names!r}")
    first = 0 if isinstance(bones, list) and any(isinstance(bone, list) and 0 in bone for bone in bones) else 1
    if not isinstance(bones, list) or not all(_is_bone(bone, first, len(names)) for bone in bones):
        raise ValueError(f"skeleton {bones!r}, expected pairs of numbers from 1 to {len(names)}")
    return Keypoints.named(names, [(start - first, end - first) for start, end in bones])


def _is_bone(bone: Any, first: int, count: int) -> bool:
    return (
        isinstance(bone, list)
        and len(bone) == 2
        and all(isinstance(i, int) and first <= i < first + count for i in bone)
    )


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


COCO_KEYPOINTS = Keypoints.named(
    names=[
        "nose",
        *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist") for side in ("left", "right")),
        *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
    ],
    skeleton=[
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ],
)
"""COCO's 17 of a person."""
