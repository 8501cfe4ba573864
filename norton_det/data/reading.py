"""Reads a JSON in COCO's format as tools write it, by the same rules in training, evaluation and `norton-det check`.

What can only be meant in one way is accepted. Whole numbers may be written as 1.0 or "1". NaN and null, which pandas
writes, count as missing. A missing iscrowd means no crowd, an area that is missing or not above 0 is the box's, and a
missing box is the one around the polygons. A flat list is one polygon, and one RLE in a list is that RLE. Of several
polygons the good ones are kept. Anything else is a problem: a line that names the file and the annotation.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Task = Literal["bbox", "segm", "keypoints"]
FINDINGS: dict[Task, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
"""What is found, by task."""
Record = dict[str, Any]

LARGEST = 2**31 - 1
"""The largest id, size or coordinate: beyond it something is wrong with the file."""
WITHOUT_MASK = "objects without a mask"
BAD_POLYGONS = "polygons of fewer than three points"


@dataclass(frozen=True)
class Content:
    """Holds a JSON's images by id, in the order of ids, and its annotations, with all that the task needs in order.

    Attributes:
        left_out: how many parts of annotations were left out, by reason.
        problems: a line on each image or annotation that cannot be used; those are not among the others.
    """

    images: dict[int, Record]
    annotations: list[Record]
    categories: list[Record]
    left_out: Counter[str]
    problems: list[str]

    def sound(self) -> "Content":
        """Return the content itself. Raises ValueError with its first problem if it has any."""
        if self.problems:
            raise ValueError(and_others(self.problems))
        return self


def and_others(lines: list[str]) -> str:
    """Return the first of several problems, and how many more there are."""
    more = f" (and {len(lines) - 1} more like it: norton-det check lists them)" if len(lines) > 1 else ""
    return lines[0] + more


def read_annotations(path: Path) -> Record:
    """Read a JSON in COCO's format as it stands, with its lists `images`, `annotations` and `categories`.

    Raises:
        ValueError: the file is no JSON, or lacks one of the three lists; the message names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: not in COCO's format, expected a list of objects under {key!r}")
    return dict(content)


def read_content(file: Path, task: Task, keypoints: int = 0) -> Content:
    """Read a JSON by the rules above; for the task keypoints each object has `keypoints` keypoints, or says none.

    Raises what `read_annotations` and `read_category` raise.
    """
    told = read_annotations(file)
    categories = [read_category(category, file) for category in told["categories"]]
    known = {category["id"] for category in categories}
    images: dict[int, Record] = {}
    left_out: Counter[str] = Counter()
    problems: list[str] = []
    with_lines = partial(_each, file, problems)
    for entry in with_lines("image", told["images"], _image):
        if entry["id"] in images:
            problems.append(f"{file}: image {entry['id']}: expected each id once")
        images[entry["id"]] = entry
    read = partial(_annotation, images=images, categories=known, task=task, keypoints=keypoints, left_out=left_out)
    annotations = list(with_lines("annotation", told["annotations"], read))
    return Content(dict(sorted(images.items())), annotations, categories, left_out, problems)


def _each(
    file: Path, problems: list[str], name: str, records: Iterable[Record], read: Callable[[Record], Record]
) -> Iterator[Record]:
    """Yield the records as `read` returns them, and add a line to the problems for each that cannot be read."""
    for record in records:
        try:
            yield read(record)
        except ValueError as error:
            problems.append(f"{file}: {name} {record.get('id')}: {error}")


def read_category(category: Mapping[str, Any], file: Path) -> Record:
    """Return a category with its id as an integer. Raises ValueError if it has no id or no name."""
    id, name = whole(category.get("id")), category.get("name")
    if id is None or not isinstance(name, str):
        raise ValueError(f"{file}: category {dict(category)} needs an integer id and a name")
    return {**category, "id": id}


def whole(value: Any) -> int | None:
    """Return the whole number that a JSON value means, also as 1.0 or as a string of digits; else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < len(str(LARGEST)) + 10:
        return int(value)
    if isinstance(value, bool) or not is_number(value) or value != int(value):
        return None
    return int(value)


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number of at most LARGEST, either side of 0."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def are_numbers(values: Any, count: int) -> bool:
    """Tell whether a JSON value is a list of `count` numbers, see `is_number`."""
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))


def _image(entry: Record) -> Record:
    id, height, width = (whole(entry.get(key)) for key in ("id", "height", "width"))
    name = entry.get("file_name")
    for key, value in (("id", id), ("height", height), ("width", width)):
        if value is None:
            raise ValueError(f"{key!r} is {entry.get(key)!r}, expected an integer")
    if not isinstance(name, str):
        raise ValueError(f"'file_name' is {name!r}, expected text")
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
        raise ValueError(f"the path {entry['file_name']!r} leads out of the image folder")
    if not path.name or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"{entry['file_name']!r} is not the name of an image")
    assert id is not None and height is not None and width is not None
    if not 0 <= id <= LARGEST:
        raise ValueError(f"expected an id from 0 to {LARGEST}")
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise ValueError(f"it is {width} x {height} pixels")
    return {**entry, "id": id, "height": height, "width": width, "file_name": name}


def _annotation(
    told: Record,
    images: Mapping[int, Record],
    categories: set[int],
    task: Task,
    keypoints: int,
    left_out: Counter[str],
) -> Record:
    ids = {"image_id": whole(told.get("image_id")), "category_id": whole(told.get("category_id"))}
    for (key, id), known in zip(ids.items(), (images, categories), strict=True):
        if id is None or id not in known:
            raise ValueError(f"it has the unknown {key} {told.get(key)!r}")
    polygons = _said(told, "segmentation")
    if task == "segm":
        polygons = _segmentation(polygons, images[ids["image_id"]], left_out)  # type: ignore[index]
    box: Any = _said(told, "bbox") or _around(polygons)
    if not are_numbers(box, 4):
        raise ValueError(f"bbox {told.get('bbox')!r}, expected four numbers [x, y, width, height]")
    area = _said(told, "area")
    if area is not None and not is_number(area):
        raise ValueError(f"area {area!r}, expected a number")
    crowd = whole(int(told["iscrowd"]) if isinstance(told.get("iscrowd"), bool) else _said(told, "iscrowd") or 0)
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {told['iscrowd']!r}, expected 0 or 1")
    area = area if area is not None and area > 0 else box[2] * box[3]  # signed and missing areas are written as well
    annotation = {**told, **ids, "bbox": box, "area": area, "iscrowd": crowd}
    if task == "segm":
        annotation["segmentation"] = polygons
    if task == "keypoints":
        annotation["keypoints"] = _keypoints(_said(told, "keypoints"), keypoints)
        shown = whole(told.get("num_keypoints"))
        annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3]) if shown is None else shown
    return annotation


def _said(record: Record, key: str) -> Any:
    """Return the value under a key, or None if it is missing, null, NaN or an empty list."""
    value = record.get(key)
    return None if value == [] or (isinstance(value, float) and math.isnan(value)) else value


def _segmentation(value: Any, image: Record, left_out: Counter[str]) -> Any:
    """Return RLE, or polygons of at least three points, or None if there is nothing to decode."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        [value] = value
    if isinstance(value, dict):
        if problem := rle_problem(value, [image["height"], image["width"]]):
            raise ValueError(problem)
        return value
    polygons = _polygons(value)
    good = [polygon for polygon in polygons if _is_polygon(polygon)]
    if good and len(good) < len(polygons):
        left_out[BAD_POLYGONS] += len(polygons) - len(good)
    return good or None


def _polygons(value: Any) -> list[Any]:
    """Return a list of polygons; a single polygon need not stand in a list of its own."""
    if not isinstance(value, list):
        return []
    return [value] if value and is_number(value[0]) else value


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and are_numbers(value, len(value))


def _around(segmentation: Any) -> list[float] | None:
    """Return the box around polygons, [x, y, width, height], or None if there are none."""
    good = [polygon for polygon in _polygons(segmentation) if _is_polygon(polygon)]
    if not good:
        return None
    xs, ys = ([value for polygon in good for value in polygon[first::2]] for first in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def rle_problem(mask: Mapping[str, Any], size: Sequence[int]) -> str | None:
    """Return a line that says why pycocotools cannot read an RLE of an image of `size` (height, width), or None.

    It would leave its memory, or not end, where run lengths do not add up to the image's pixels.
    """
    if mask.get("size") != [*size]:
        return f"RLE of size {mask.get('size')}, expected {[*size]}"
    counts = mask.get("counts")
    lengths = _run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(isinstance(length, int) and length >= 0 for length in lengths):
        return "RLE whose 'counts' are no run lengths"
    if sum(lengths) != math.prod(size):
        return f"RLE of {sum(lengths)} pixels, expected {math.prod(size)}"
    return None


def _run_lengths(text: str) -> list[int] | None:
    """Decode an RLE's text, or return None where it is none.

    Each character holds five bits of a number, the least first, and a sixth that says whether the number goes on; the
    fifth bit of its last character is the sign. From the fourth number on each is the difference to the last but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits >> 4 & 1) << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return lengths if lengths and not shift else None


def _keypoints(value: Any, count: int) -> list[Any]:
    """Return the flat list of x, y, visibility, with 0, 0, 0 for a keypoint that has a null or NaN."""
    if value is None:
        return [0] * 3 * count
    if not isinstance(value, list) or len(value) != 3 * count:
        raise ValueError(f"keypoints {value!r}, expected {count} times x, y, visibility")
    points = [value[first : first + 3] for first in range(0, len(value), 3)]
    placed = [[0, 0, 0] if any(v is None or v != v for v in point) else point for point in points]
    if not all(are_numbers(point, 3) for point in placed):
        raise ValueError(f"keypoints {value!r}, expected {count} times x, y, visibility")
    return [number for point in placed for number in point]
