import pytest
import torch
from torch import Tensor, nn

from norton_det.evaluation.classification import Hits, count_hits, evaluate_classifier


def by_hand(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many labels are among the first k classes, one comparison at a time; ties go to the lower class."""
    found = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ahead = sum(value > row[label] or (value == row[label] and c < label) for c, value in enumerate(row))
        found += ahead < k
    return found


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 40])
@pytest.mark.parametrize("levels", [3, 10**6])  # few levels: many ties
def test_hits_equal_a_brute_force_count(classes: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(levels, (200, classes), generator=generator).float()
    labels = torch.randint(classes, (200,), generator=generator)
    assert count_hits(logits, labels) == Hits(200, by_hand(logits, labels, 1), by_hand(logits, labels, 5))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_network_that_says_nothing_stays_at_chance(value: float) -> None:
    hits = count_hits(torch.full((20, 10), value), torch.arange(20) % 10)
    assert hits == Hits(20, 2, 10)
    assert hits.percentages() == {"top1": 10.0, "top5": 50.0}


def test_parts_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(23, 3, 4, 4), torch.randint(9, (23,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.Dropout(0.9))
    whole = count_hits(model.eval()(images), labels)
    batches = list(zip(images.split(5), labels.split(5), strict=True))
    shares = [evaluate_classifier(model.train(), batches[rank::3], torch.device("cpu"), False) for rank in range(3)]
    assert sum(shares, Hits()) == whole


def test_no_images_give_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no images"):
        Hits().percentages()
