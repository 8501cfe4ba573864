"""Matches a detector's categories with a dataset's: by name, or by id and name if a name stands twice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from norton_det.data.catalog import UNUSED, Categories
from norton_det.names import some


@dataclass(frozen=True)
class Matching:
    """Says how a dataset's categories correspond to known ones, such as a detector's.

    Attributes:
        labels: the known label of each of the dataset's labels whose category is known.
        unknown: names that only the dataset has.
        absent: known names that the dataset lacks.
    """

    labels: Mapping[int, int]
    unknown: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Tell whether both have the same categories."""
        return not self.unknown and not self.absent

    def told(self, data: str, known: str) -> str:
        """Return a line that names the categories that differ; the two sides are called `data` and `known`."""
        lacks = [(known, self.unknown), (data, self.absent)]
        return "categories differ: " + "; ".join(f"{who} lacks {some(names)}" for who, names in lacks if names)


def match(known: Categories, data: Categories) -> Matching:
    """Match a dataset's categories with the known ones."""
    theirs, ours = known.labels, data.labels
    by_both = {(id, known.names[label]): label for id, label in theirs.items()}
    by_name = {known.names[label]: label for label in theirs.values()}
    labels: dict[int, int] = {}
    for id, label in ours.items():
        name = data.names[label]
        found = by_both.get((id, name), by_name.get(name))
        if found is not None and found not in labels.values():
            labels[label] = found
    return Matching(
        labels,
        unknown=tuple(data.names[label] for label in ours.values() if label not in labels),
        absent=tuple(known.names[label] for label in theirs.values() if label not in labels.values()),
    )


def seen_by(known: Categories, data: Categories, matching: Matching) -> Categories:
    """Return the known labels with the dataset's category ids; labels that the dataset lacks become unused."""
    names, ids = [known.names[0], *[UNUSED] * (len(known.names) - 1)], [0] * len(known.ids)
    for label, found in matching.labels.items():
        names[found], ids[found] = known.names[found], data.ids[label]
    return replace(known, names=tuple(names), ids=tuple(ids))
