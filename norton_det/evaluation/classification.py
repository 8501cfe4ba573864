"""Computes a classifier's top-1 and top-5 accuracy, in counts that add up exactly over batches and processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Hits:
    """Counts images, those whose right class came first, and those where it was one of the first five."""

    images: int = 0
    top1: int = 0
    top5: int = 0

    def __add__(self, other: "Hits") -> "Hits":
        return Hits(self.images + other.images, self.top1 + other.top1, self.top5 + other.top5)

    def percentages(self) -> dict[str, float]:
        """Return `top1` and `top5` in percent. Raises ValueError where there was no image."""
        if not self.images:
            raise ValueError("no images were classified, so there is no accuracy")
        return {"top1": 100 * self.top1 / self.images, "top5": 100 * self.top5 / self.images}


def count_hits(logits: Tensor, labels: Tensor) -> Hits:
    """Count the hits among logits (N, C) for labels (N,).

    Of equal logits the lower class comes first, so a network that says the same for all classes stays at chance.
    """
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :5]  # (N, 5)
    right = best == labels[:, None]
    return Hits(len(labels), int(right[:, :1].sum()), int(right.sum()))


@torch.inference_mode()
def evaluate_classifier(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device, show_progress: bool = True
) -> Hits:
    """Count the hits over a loader of images (N, 3, H, W) and labels (N,), the network in evaluation mode."""
    model.eval()
    hits = Hits()
    for images, labels in tqdm(loader, desc="evaluate", disable=not show_progress):
        hits += count_hits(model(images.to(device, memory_format=torch.channels_last)), labels.to(device))
    return hits
