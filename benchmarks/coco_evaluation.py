"""Time and equality of two back ends of COCO's evaluation: pycocotools and faster-coco-eval.

    pip install faster-coco-eval
    python benchmarks/coco_evaluation.py [--images 5000] [--detections 100] [--tasks bbox segm keypoints]

The ground truth is synthetic, with crowds and images without objects; the detections are its objects, shaken, with
tied scores. Timed are loading the results, matching and accumulating, in turns, one after the other.
"""

import argparse
import contextlib
import copy
import io
import time
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools import coco, cocoeval
from pycocotools import mask as rle

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
OBJECTS_PER_IMAGE = 7.3  # COCO's


def ground_truth(images: int, task: str, rng: np.random.Generator) -> dict[str, Any]:
    categories = 1 if task == "keypoints" else CATEGORIES
    objects = [
        synthetic_object(image, int(rng.integers(1, categories + 1)), task, rng)
        for image in range(1, images + 1)
        for _ in range(rng.poisson(OBJECTS_PER_IMAGE) * (image % 20 > 0))
    ]
    return {
        "info": {},
        "images": [{"id": id, "height": HEIGHT, "width": WIDTH} for id in range(1, images + 1)],
        "annotations": [{**entry, "id": id} for id, entry in enumerate(objects, start=1)],
        "categories": [{"id": id, "name": f"thing {id}"} for id in range(1, categories + 1)],
    }


def synthetic_object(image: int, category: int, task: str, rng: np.random.Generator) -> dict[str, Any]:
    size = np.minimum(rng.lognormal(4, 0.9, 2) + 4, (WIDTH, HEIGHT))
    box = [*rng.uniform(0, (WIDTH, HEIGHT) - size).tolist(), *size.tolist()]
    keypoints = np.concatenate(
        [rng.uniform(box[:2], np.add(box[:2], size), (17, 2)), rng.integers(0, 3, (17, 1))], axis=1
    ) * (rng.random() < 0.6)  # others have none
    crowd = rng.random() < 0.01
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": 0.6 * float(size.prod()),
        "iscrowd": int(crowd),
        **shape(box, keypoints, task),
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def shape(box: list[float], keypoints: np.ndarray[Any, Any], task: str) -> dict[str, Any]:
    """What a task needs beside the box; a mask is the box without its corners."""
    if task == "keypoints":
        return {"keypoints": keypoints.flatten().tolist()}
    if task == "bbox":
        return {}
    x, y, w, h = box
    corners = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
    polygon = [value for u, v in corners for value in (x + u * w, y + v * h)]
    (encoded,) = rle.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}}


def detections(truth: dict[str, Any], count: int, task: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for entry in truth["annotations"]:
        objects[entry["image_id"]].append(entry)
    return [
        shaken(own[int(rng.integers(len(own)))], image, task, rng)
        for image, entries in objects.items()
        for own in [entries or truth["annotations"]]
        for _ in range(count)
    ]


def shaken(entry: dict[str, Any], image: int, task: str, rng: np.random.Generator) -> dict[str, Any]:
    scale = rng.choice([0.03, 0.3])
    x, y, w, h = entry["bbox"]
    box = (np.array([x, y, w, h]) + scale * rng.normal(0, 1, 4) * (w, h, w, h)).clip(1).tolist()
    result = {"image_id": image, "category_id": entry["category_id"], "score": round(float(rng.uniform()), 3)}
    if task == "bbox":
        return {**result, "bbox": box}
    keypoints = np.reshape(entry.get("keypoints", np.zeros(51)), (17, 3)) + scale * rng.normal(0, 20, (17, 3))
    return {**result, **shape(box, keypoints, task)}


def evaluate_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], task: str) -> Any:
    own = coco.COCO()
    own.dataset = truth
    own.createIndex()
    return finished(cocoeval.COCOeval(own, own.loadRes(results), task))


def evaluate_faster(truth: dict[str, Any], results: list[dict[str, Any]], task: str) -> Any:
    own = faster_coco_eval.COCO(truth)
    return finished(faster_coco_eval.COCOeval_faster(own, own.loadRes(results), task))


def finished(comparison: Any) -> Any:
    comparison.evaluate()
    comparison.accumulate()
    comparison.summarize()
    return comparison


BACK_ENDS = {"pycocotools": evaluate_pycocotools, "faster-coco-eval": evaluate_faster}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--tasks", nargs="+", default=["bbox"], choices=["bbox", "segm", "keypoints"])
    arguments = parser.parse_args()
    print(f"{arguments.images} images, {arguments.detections} detections each\n")
    print("| task | pycocotools s | faster-coco-eval s | ratio | AP | metrics differ by | precisions that differ |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in arguments.tasks:
        rng = np.random.default_rng(0)
        truth = ground_truth(arguments.images, task, rng)
        print(row(task, truth, detections(truth, arguments.detections, task, rng)), flush=True)


def row(task: str, truth: dict[str, Any], results: list[dict[str, Any]]) -> str:
    seconds, found = {}, {}
    for name, evaluate in BACK_ENDS.items():
        inputs = copy.deepcopy((truth, results))  # to which both add
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = evaluate(*inputs, task)
        seconds[name] = time.perf_counter() - start
    ours, theirs = found.values()
    difference = np.abs(ours.stats - np.array(theirs.stats)[: len(ours.stats)]).max()
    precision = ours.eval["precision"]
    unequal = np.mean(precision != np.reshape(theirs.eval["precision"], precision.shape))
    first, second = seconds.values()
    cells = [f"{first:.1f}", f"{second:.1f}", f"{first / second:.1f}", f"{100 * ours.stats[0]:.2f}"]
    return f"| {' | '.join([task, *cells, f'{difference:.1e}', f'{unequal:.2%}'])} |"


if __name__ == "__main__":
    main()
