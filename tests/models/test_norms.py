"""BatchNorm in its kinds: how many images stand behind it, and what of a module its replacement keeps."""

import pytest
from torch import nn

from norton_det.models.norms import freeze_batch_norms, unfreeze_batch_norms, warn_of_small_batches


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
    assert ("images stand behind each BatchNorm" in caplog.text) == warned


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_stays(training):
    model = nn.Sequential(nn.BatchNorm2d(4)).train(training)
    for change in (freeze_batch_norms, unfreeze_batch_norms):
        change(model)
        assert model[0].training == training
