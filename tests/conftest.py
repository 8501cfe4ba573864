import os
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights, images and annotations, or a skip: NORTON_REAL_DATA, or beside us."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NORTON_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def real_filters(real_data: Path) -> dict[str, Tensor]:
    """The 3x3 convolutions of a trained ResNet-50 by name, (K, C, 3, 3) float32."""
    path = real_data / "weights" / "resnet50_imagenet_partial.pth"
    if not path.is_file():
        pytest.skip(f"no {path}")
    state = torch.load(path, weights_only=True)
    return {
        name: weight.float() for name, weight in state.items() if weight.ndim == 4 and weight.shape[-2:] == (3, 3)
    }
