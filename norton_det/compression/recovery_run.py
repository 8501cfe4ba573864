"""Runs a recovery: it has parts, the maps between them, and a file that keeps the finished parts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.compression.activations import ActivationFile
from norton_det.compression.compress import PartReport
from norton_det.compression.distill import Distillation, distill, outputs_of, read_batches
from norton_det.compression.refit import Batches
from norton_det.files import free_path, load_tensors, save_tensors
from norton_det.models.device import device_of
from norton_det.models.parts import regions
from norton_det.models.weights import load_state

log = logging.getLogger(__name__)
REGIONS = 16
"""How many proposals of each image the heads are restored on."""
READ_SIZE, REGION_READ_SIZE = 8, 64
"""How many images, and how many regions, are read at a time."""
BATCH_SIZE, REGION_BATCH_SIZE = 2, 16
"""How many images, and how many regions, a gradient step has: many small steps restore more than few large ones."""


@dataclass(frozen=True)
class Part:
    """A part of the model in both networks; its outputs are compared at the dense channels `kept` (None: all).

    Before the part is trained, `refit` solves what is linear in it from what it reads in both networks.
    """

    name: str
    student: nn.Module
    teacher: nn.Module
    kept: Sequence[int] | None = None
    refit: Callable[[Batches, torch.Generator], None] | None = None
    read_size: int = READ_SIZE
    batch_size: int = BATCH_SIZE


@dataclass(frozen=True)
class Maps:
    """Holds the maps between two parts, in the compressed and in the dense model; the first `held` are held back."""

    student: list[ActivationFile]
    teacher: list[ActivationFile]
    held: int

    def delete(self) -> None:
        """Delete the files of both models."""
        for file in {id(file): file for file in (*self.student, *self.teacher)}.values():
            file.delete()


class RecoveryRun:
    """A recovery under way: it knows where its maps lie, which parts are finished, and where these are kept."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        part_steps: int,
        part_seconds: float,
        seed: int,
        folder: Path,
        checkpoint: Path | None,
        key: Mapping[str, Any],
    ) -> None:
        self.student, self.teacher, self.device = student, teacher, device_of(student)
        self.reports: list[PartReport] = []
        self.seed = seed
        self._steps, self._seconds = part_steps, part_seconds
        self._folder, self._checkpoint, self._key = folder, checkpoint, key
        self._files = 0
        self._finished: dict[str, PartReport] = {}
        self.whole: dict[str, Any] = {}
        """The state that the training of the whole detector goes on from, once it has begun: then all parts are
        finished."""
        if checkpoint is not None and checkpoint.exists():
            self._go_on(checkpoint)

    def _go_on(self, checkpoint: Path) -> None:
        try:
            content = load_tensors(checkpoint)
            if content["key"] != self._key:
                kept = checkpoint.rename(free_path(checkpoint))
                log.warning("%s is of another recovery: this one starts afresh; kept: %s", checkpoint, kept)
                return
            finished = {values[0]: PartReport(*values) for values in content["parts"]}
            whole = content["whole"]
            load_state(self.student, content["model"], str(checkpoint))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s; recovery starts afresh", error)
            return
        self._finished, self.whole = finished, whole
        self.reports = list(finished.values()) if whole else []

    def new_file(self) -> ActivationFile:
        """Return an empty file for maps, which is deleted with the run's folder."""
        self._files += 1
        return ActivationFile(self._folder / f"{self._files}.maps")

    def pass_on(self, part: Part, maps: Maps) -> Maps:
        """Restore a part on its inputs; return its outputs."""
        wanted = self.restore(part, maps)
        return Maps(self._apply(part.student, maps.student, part.read_size), wanted, maps.held)

    def restore(self, part: Part, maps: Maps) -> list[ActivationFile]:
        """Restore a part, unless an earlier, stopped run finished it; return the dense part's outputs."""
        wanted = self._apply(part.teacher, maps.teacher, part.read_size)
        report = self._finished.get(part.name)
        if report is None:
            targets = wanted if part.kept is None else [file.select(part.kept) for file in wanted]
            generator = torch.Generator().manual_seed(self.seed + len(self.reports))
            how = Distillation(
                part.name, self._steps, part.read_size, part.batch_size, maps.held, generator, self._seconds
            )

            def refit() -> None:
                if part.refit is not None:
                    part.refit(self._read_both(maps, part.read_size), generator)

            report = PartReport(part.name, *distill(part.student, maps.student, targets, how, refit))
        self.reports.append(report)
        self._save()
        return wanted

    def _read_both(self, maps: Maps, size: int) -> Batches:
        """Read what a part reads in both models, without the maps that are held back."""
        fitted = range(maps.held, maps.student[0].count)
        both = (read_batches(files, fitted, size, self.device) for files in (maps.student, maps.teacher))
        return zip(*both, strict=True)

    @torch.no_grad()
    def _apply(self, module: nn.Module, files: list[ActivationFile], size: int) -> list[ActivationFile]:
        results: list[ActivationFile] = []
        for maps in read_batches(files, range(files[0].count), size, self.device):
            outputs = outputs_of(module, maps)
            results = results or [self.new_file() for _ in outputs]
            for file, output in zip(results, outputs, strict=True):
                file.append(output)
        return results

    @torch.no_grad()
    def pool(self, images: Sequence[Tensor], order: Sequence[int], held: int) -> dict[str, Maps]:
        """Return what each head sees: regions of both pyramids at the dense model's best proposals."""
        poolers = {kind: region.pooler for kind, region in regions(self.teacher).items()}
        if not poolers:
            return {}
        files = {kind: (self.new_file(), self.new_file()) for kind in poolers}
        held_regions = 0
        for place, index in enumerate(tqdm(order, desc="regions")):
            batch, _ = self.teacher.transform([images[index].to(self.device)])
            ours, theirs = (model.backbone(batch.tensors) for model in (self.student, self.teacher))
            boxes = [self.teacher.rpn(batch, theirs)[0][0][:REGIONS]]
            for kind, (student, teacher) in files.items():
                student.append(poolers[kind](ours, boxes, batch.image_sizes))
                teacher.append(poolers[kind](theirs, boxes, batch.image_sizes))
            held_regions += len(boxes[0]) if place < held else 0
        return {kind: Maps([student], [teacher], held_regions) for kind, (student, teacher) in files.items()}

    def save_whole(self, state: dict[str, Any]) -> None:
        """Keep how far the training of the whole detector has come."""
        self.whole = state
        self._write()

    def _save(self) -> None:
        if len(self.reports) > len(self._finished):
            self._write()

    def _write(self) -> None:
        if self._checkpoint is None:
            return
        parts = [[report.name, report.before, report.after] for report in self.reports]
        content = {"key": self._key, "model": self.student.state_dict(), "parts": parts, "whole": self.whole}
        save_tensors(self._checkpoint, content)
