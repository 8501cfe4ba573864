"""Trains a compressed detector as a whole to say what the dense one says, on images without labels."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms.v2 import functional as image_ops
from tqdm import tqdm

from norton_det.compression.distill import all_trainable
from norton_det.compression.optimizers import lower_peaks, scaled_muon, set_rates
from norton_det.compression.small_images import SmallImages
from norton_det.models.bags import pooling_by_bags
from norton_det.models.device import device_of
from norton_det.models.imitation import imitation_losses
from norton_det.models.precision import fastest_precision

LEARNING_RATE, MATRIX_RATE = 0.005, 0.001
"""Adam's and Muon's peak learning rates, as shares of the root mean square of a tensor's numbers."""
GENTLER = 0.25
"""The factor on the learning rate where it does harm."""
CLIP = 1.0
"""The largest norm of a step's gradient."""
BATCH = 4
"""How many images a step has."""
LOOKS = 5
"""How often the held-back images are measured on; the best state seen then is kept."""
MOST_HELD = 16
"""At most how many held-back images are measured on."""
LEAST_CROP, ZOOM, COLOUR = 0.6, 0.2, 0.3
"""The least share of an image's sides in a crop; how far the logarithm of a scale may be from 0; how far brightness,
contrast and saturation may be from 1."""


@dataclass(frozen=True)
class Length:
    """Sets how long the training lasts: so many steps, or until so many seconds have passed."""

    steps: int
    seconds: float | None = None

    def share(self, steps: float, seconds: float) -> float:
        """Return which share of the training is over after so many steps in so many seconds."""
        return steps / self.steps if self.seconds is None else seconds / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Imitation:
    """Holds what is trained, and on what: images by index; those of `held` are only measured on."""

    student: Any
    teacher: Any
    images: Sequence[Tensor] | SmallImages
    held: Sequence[int]
    trained: Sequence[int]
    seed: int

    @property
    def device(self) -> torch.device:
        """Return the device of both detectors."""
        return device_of(self.student)

    def losses(self, batch: ImageList) -> dict[str, Tensor]:
        """Compute `imitation_losses` in the precision that is fastest here."""
        with pooling_by_bags(self.student), pooling_by_bags(self.teacher):
            return imitation_losses(self.student, self.teacher, batch, fastest_precision(self.device))

    def step_images(self, step: int) -> list[Tensor]:
        """Return the images of a step; all are drawn in shuffled order, one shuffle after another."""
        places = range(step * BATCH, (step + 1) * BATCH)
        turns = [divmod(place, len(self.trained)) for place in places]
        orders = {
            turn: torch.randperm(len(self.trained), generator=self.generator(turn)).tolist() for turn, _ in turns
        }
        return [self.images[self.trained[orders[turn][place]]].to(self.device) for turn, place in turns]

    def generator(self, number: int) -> torch.Generator:
        """Return a generator whose draws the seed and a number decide."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def batches(self, indices: Sequence[int]) -> Iterator[ImageList]:
        """Yield whole images as the detector sees them, batch by batch."""
        for start in range(0, len(indices), BATCH):
            images = [self.images[index].to(self.device) for index in indices[start : start + BATCH]]
            yield self.teacher.transform(images)[0]

    @torch.no_grad()
    def held_back_loss(self) -> float:
        """Return the sum of the losses, averaged over the held-back images."""
        total = sum(
            len(batch.image_sizes) * torch.stack(list(self.losses(batch).values())).sum().item()
            for batch in self.batches(self.held[:MOST_HELD])
        )
        return float(total) / min(len(self.held), MOST_HELD)


def train_end_to_end(
    how: Imitation, length: Length, state: Mapping[str, Any], save: Callable[[dict[str, Any]], None]
) -> tuple[float, float]:
    """Train the student, in place, to do what the teacher does; return the held-back loss before and after.

    Muon trains the matrices and Adam the rest, each tensor at a rate in shares of its own size, while BatchNorm's
    statistics stay fixed. The state with the least loss on the held-back images is kept, the first one if none is
    better. Where the loss there is above that at the start, training goes back to the best state and on at a lower
    rate. `save` is given the state from which a later call, with it as `state`, goes on; `state` is else empty.
    """
    student = how.student
    state = state or _beginning(how, length)
    student.load_state_dict(state["student"])
    before, best, found, step = (state[name] for name in ("before", "best", "found", "step"))
    length = Length(length.steps, state["lasts"])
    started = time.monotonic() - state["seconds"]
    with all_trainable(student) as parameters, tqdm(desc="end to end", initial=step, unit="step") as bar:
        optimizers = scaled_muon(parameters, LEARNING_RATE, MATRIX_RATE)
        for optimizer, kept in zip(optimizers, state.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(kept)
        share = length.share(step, time.monotonic() - started)
        while share < 1:
            set_rates(optimizers, length.share(step + 0.5, time.monotonic() - started))
            batch = augmented(how.teacher.transform, how.step_images(step), how.generator(step))
            student.zero_grad()
            torch.stack(list(how.losses(batch).values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            looks, share = int(share * LOOKS), length.share(step, time.monotonic() - started)
            bar.total = round(step / min(1.0, share))
            bar.update()
            if int(share * LOOKS) == looks:
                continue
            loss = how.held_back_loss()
            if loss < best:
                best, found = loss, copy.deepcopy(student.state_dict())
            elif loss > before:
                student.load_state_dict(found)
                lower_peaks(optimizers, GENTLER)
            save({
                "before": before, "best": best, "found": found, "step": step, "lasts": length.seconds,
                "student": student.state_dict(), "optimizers": [each.state_dict() for each in optimizers],
                "seconds": time.monotonic() - started,
            })  # fmt: skip
    student.load_state_dict(found)
    return before, best


def _beginning(how: Imitation, length: Length) -> dict[str, Any]:
    """Return the state that a training starts from, without an optimiser's state."""
    started = time.monotonic()
    loss, found = how.held_back_loss(), copy.deepcopy(how.student.state_dict())
    seconds = time.monotonic() - started
    return {
        "before": loss, "best": loss, "found": found, "step": 0, "lasts": length.seconds, "student": found,
        "seconds": seconds,
    }  # fmt: skip


def augmented(transform: Any, images: Sequence[Tensor], generator: torch.Generator) -> ImageList:
    """Make a detector's batch of images, float RGB (3, H, W) in 0 to 1, cropped, mirrored and coloured at random.

    All have one scale, near the one at which `transform` shows whole images, and crops of one share of the sides.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    share, zoom = draw(LEAST_CROP, 1), math.exp(draw(-ZOOM, ZOOM))
    changed = []
    for image in images:
        sides = image.shape[1:]
        scale = zoom * min(transform.min_size[-1] / min(sides), transform.max_size / max(sides))
        height, width = (max(1, round(share * side)) for side in sides)
        top, left = (int(draw(0, whole - side + 1)) for whole, side in zip(sides, (height, width), strict=True))
        size = [max(1, round(scale * side)) for side in (height, width)]
        image = image_ops.resized_crop(image, top, left, height, width, size)
        if draw(0, 1) < 0.5:
            image = image_ops.horizontal_flip(image)
        for change in (image_ops.adjust_brightness, image_ops.adjust_contrast, image_ops.adjust_saturation):
            image = change(image, draw(1 - COLOUR, 1 + COLOUR))
        changed.append(transform.normalize(image))
    return ImageList(transform.batch_images(changed), [(image.shape[1], image.shape[2]) for image in changed])
