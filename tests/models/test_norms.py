"""BatchNorm in its kinds: how many images stand behind it, and what of a module its replacement keeps."""

import pytest
import torch
from detectors import frames, tiny_detector
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.models.norms import freeze_batch_norms, unfreeze_batch_norms, warn_of_small_batches
from norton_det.models.persistence import model_from_weights, save_weights
from norton_det.models.weights import read_weights


@pytest.mark.parametrize(
    ("norm", "images", "processes", "warned"),
    [
        (nn.BatchNorm2d, 7, 1, True),
        (nn.BatchNorm2d, 8, 1, False),
        (nn.BatchNorm2d, 4, 2, True),  # each process has statistics of its own
        (nn.SyncBatchNorm, 4, 2, False),
        (nn.SyncBatchNorm, 3, 2, True),
        (nn.Identity, 1, 1, False),
    ],
)
def test_few_images_behind_a_batch_norm_are_warned_about(norm, images, processes, warned, caplog):
    warn_of_small_batches(nn.Sequential(norm(4)), images, processes)
    assert ("images behind each BatchNorm" in caplog.text) == warned


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_stays(training):
    model = nn.Sequential(nn.BatchNorm2d(4)).train(training)
    for change in (freeze_batch_norms, unfreeze_batch_norms):
        change(model)
        assert model[0].training == training


@pytest.mark.parametrize("plan", [None, "[0.]*2+[0.25]*10"])
def test_norms_of_pyramid_and_heads_that_were_frozen_come_back_from_their_file(plan, tmp_path):
    detector = tiny_detector("mask_rcnn_v2", "resnet18", plan)
    freeze_batch_norms(detector)
    save_weights(tmp_path / "frozen.pth", detector)
    back = model_from_weights(read_weights(tmp_path / "frozen.pth"))
    assert isinstance(back.backbone.fpn.inner_blocks[0][1], FrozenBatchNorm2d)
    assert not [module for module in back.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(back(frames()), detector(frames()), strict=True))
