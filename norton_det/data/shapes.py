"""Draws the embedded dataset: scenes with boxes, masks and keypoints, in COCO's format.

Everything follows from the seed: scene i of a split depends on (seed, split, i) and on nothing else.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from norton_det import opencv as cv2
from norton_det.data.backgrounds import background, lit
from norton_det.data.figures import FIGURES, crowd
from norton_det.data.polygons import Figure
from norton_det.files import write_json
from norton_det.keypoints import COCO_KEYPOINTS

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Annotation = dict[str, Any]


class Category(NamedTuple):
    """Holds a kind of object and its id in the annotation files; the ids have gaps, as COCO's have."""

    name: str
    id: int


CATEGORIES = (
    Category("person", 1),
    Category("car", 3),
    Category("ball", 4),
    Category("house", 8),
    Category("fish", 11),
    Category("kite", 15),
)
PERSON = CATEGORIES[0]

KEYPOINT_NAMES = COCO_KEYPOINTS.names
# Counted from 1 as in COCO's files.
SKELETON = tuple((start + 1, end + 1) for start, end in COCO_KEYPOINTS.skeleton)

SIZES = ((256, 192), (192, 256), (256, 256))  # width, height
SIZE_SHARES = (0.8, 0.1, 0.1)
OBJECT_COUNT_SHARES = (0.04, 0.14, 0.2, 0.2, 0.17, 0.12, 0.08, 0.05)  # of 0 to 7 objects
PERSON_SHARE = 0.4
PERSON_SIZES, OTHER_SIZES = (34, 175), (20, 125)  # pixels, the longest side
CROWD_SHARE = 0.07
LEAST_VISIBLE_SHARE = 0.3
LEAST_LONGEST_SIDE = 14  # pixels
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Scene:
    """Holds an RGB image (H, W, 3) and its objects as COCO annotations without ids; people carry keypoints."""

    image: Image
    annotations: list[Annotation]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: up to 7 objects that may cover each other, sometimes a crowd, on a textured background."""
    width, height = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    image = background(rng, height, width)
    figures = _choose_figures(rng, height, width)

    # From front to back: what is still uncovered is what can be seen of a figure.
    shown: list[Figure] = []
    annotations: list[Annotation] = []
    covered = np.zeros((height, width), np.bool_)
    for category, figure, is_crowd in figures:
        silhouette = figure.silhouette(height, width)
        visible = silhouette & ~covered
        if visible.sum() < LEAST_VISIBLE_SHARE * silhouette.sum() or max(_box(visible)[2:]) < LEAST_LONGEST_SIDE:
            continue
        annotation = _annotation(visible, category, is_crowd)
        if category == PERSON:
            annotation |= _keypoints(figure.keypoints, covered)
        annotations.append(annotation)
        shown.append(figure)
        covered |= silhouette

    for figure in reversed(shown):
        figure.paint(image)
    return Scene(lit(rng, image), annotations)


def write_shapes(folder: Path, *, train_images: int = 1000, val_images: int = 200, seed: int = 0) -> None:
    """Draw ``train/*.jpg``, ``val/*.jpg`` and ``annotations/{instances,person_keypoints}_{train,val}.json``.

    The folder appears whole or not at all. A dataset that is already there, or that another process finishes
    first, is left as it is.

    Raises:
        ValueError: a number of images is below 1.
        FileExistsError: the folder holds something other than this dataset.
    """
    counts = dict(zip(SPLITS, (train_images, val_images), strict=True))
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"{split}_images is {count}, expected at least 1")
    if _is_complete(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not the shapes dataset")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        drawing = Path(temporary) / folder.name
        (drawing / "annotations").mkdir(parents=True)
        with tqdm(total=sum(counts.values()), desc="drawing shapes", unit="image") as progress:
            for split, count in counts.items():
                _write_split(drawing, split, count, seed, progress)
        try:
            drawing.rename(folder)
        except OSError:
            if not _is_complete(folder):
                raise


def _is_complete(folder: Path) -> bool:
    kinds = ("instances", "person_keypoints")
    return all((folder / "annotations" / f"{kind}_{split}.json").is_file() for kind in kinds for split in SPLITS)


def _write_split(folder: Path, split: str, count: int, seed: int, progress: "tqdm[Any]") -> None:
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[Annotation] = []
    for index in range(count):
        seeds = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
        scene = draw_scene(np.random.default_rng(seeds))
        image_id = index + 1
        file_name = f"{image_id:012d}.jpg"
        path = folder / split / file_name
        if not cv2.imwrite(str(path), scene.image[..., ::-1].copy(), [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"cannot write {path}; is the disk full?")
        height, width = scene.image.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1})
        for annotation in scene.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        progress.update()

    categories = [{"id": kind.id, "name": kind.name, "supercategory": kind.name} for kind in CATEGORIES]
    keypoint_keys = {"keypoints", "num_keypoints"}
    instances = [{k: v for k, v in one.items() if k not in keypoint_keys} for one in annotations]
    person = categories[0] | {
        "keypoints": list(KEYPOINT_NAMES),
        "skeleton": [list(bone) for bone in SKELETON],
    }
    people = [one for one in annotations if one["category_id"] == PERSON.id]
    for kind, of_kind, its_categories in (
        ("instances", instances, categories),
        ("person_keypoints", people, [person]),
    ):
        content = {
            "info": {"description": f"norton_det shapes, seed {seed}", "version": "1.0"},
            "licenses": [
                {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
            ],
            "images": images,
            "annotations": of_kind,
            "categories": its_categories,
        }
        write_json(folder / "annotations" / f"{kind}_{split}.json", content)


def _choose_figures(rng: np.random.Generator, height: int, width: int) -> list[tuple[Category, Figure, bool]]:
    """Draw the figures at their places, from front to back, each with its category and whether it is a crowd."""
    count = int(rng.choice(len(OBJECT_COUNT_SHARES), p=OBJECT_COUNT_SHARES))
    figures = []
    for _ in range(count):
        is_person = rng.uniform() < PERSON_SHARE
        category = PERSON if is_person else CATEGORIES[rng.integers(1, len(CATEGORIES))]
        size = float(np.exp(rng.uniform(*np.log(PERSON_SIZES if is_person else OTHER_SIZES))))
        figure = FIGURES[category.name](rng)
        if not is_person and rng.uniform() < 0.5:
            figure = figure.placed(np.diag([-1.0, 1.0]), np.zeros(2))
        figures.append((category, _place(rng, figure, size, height, width), False))
    if count and rng.uniform() < CROWD_SHARE:
        figures.append((PERSON, _place(rng, crowd(rng), rng.uniform(70, 120), height, width), True))
    return figures


def _place(rng: np.random.Generator, figure: Figure, size: float, height: int, width: int) -> Figure:
    """Return the figure turned a little, its longest side `size` pixels, at least 4/5 of it inside on each axis."""
    angle = np.radians(rng.uniform(-14, 14))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    low, high = figure.placed(turned, np.zeros(2)).box()
    scale = size / (high - low).max()
    extent = scale * (high - low)
    corner = rng.uniform(-0.2 * extent, np.array([width, height]) - 0.8 * extent)
    return figure.placed(scale * turned, corner - scale * low)


def _annotation(visible: Mask, category: Category, is_crowd: bool) -> Annotation:
    height, width = visible.shape
    return {
        "category_id": category.id,
        "bbox": [float(side) for side in _box(visible)],
        "area": float(visible.sum()),
        "iscrowd": int(is_crowd),
        "segmentation": {"counts": _run_lengths(visible), "size": [height, width]}
        if is_crowd
        else _polygons(visible),
    }


def _keypoints(points: npt.NDArray[np.float64] | None, covered: Mask) -> Annotation:
    """Return COCO's flat [x, y, v] * 17: v is 2 when seen, 1 behind another object, 0 (and x = y = 0) outside."""
    height, width = covered.shape
    flat: list[int] = []
    for x, y in np.round(points).astype(int).tolist() if points is not None else [(-1, -1)] * len(KEYPOINT_NAMES):
        inside = 0 <= x < width and 0 <= y < height
        flat += [x, y, 1 if covered[y, x] else 2] if inside else [0, 0, 0]
    return {"keypoints": flat, "num_keypoints": sum(visibility > 0 for visibility in flat[2::3])}


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Return x, y, width, height of the mask's pixels; all 0 if it has none."""
    if not mask.any():
        return 0, 0, 0, 0
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _polygons(mask: Mask) -> list[list[float]]:
    """Return the mask's outlines as COCO's flat [x1, y1, ...], where pixel i spans i to i + 1.

    A polygon has no holes, so a mask with one is cut in two through it. Every pixel is enlarged to 4x4 before
    tracing: contours run through the centres of pixels and would lose half a pixel on each side.
    """
    x, y, width, height = _box(mask)
    cropped = mask[y : y + height, x : x + width].astype(np.uint8)
    enlarged = cv2.resize(cropped, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    flat = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            left, right = mask.copy(), mask.copy()
            cut = x + int(contour[..., 0].mean()) // 4
            left[:, cut:], right[:, :cut] = False, False
            return _polygons(left) + _polygons(right)
        simpler = cv2.approxPolyDP(contour, 2.0, True)
        corners = (simpler if len(simpler) >= 3 else contour)[:, 0] + 0.5
        flat.append((corners / 4 + (x, y)).ravel().tolist())
    return flat


def _run_lengths(mask: Mask) -> list[int]:
    """Return COCO's uncompressed RLE: lengths of alternating runs, column by column, the first of zeros."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return lengths
