"""Every command is run in an empty folder of its own, and what it tells is kept."""

import pytest

from norton_det.data.shapes import write_shapes


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """The folder of datasets, in which shapes has 12 training images and 7 others."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train_images=12, val_images=7)
    return root


@pytest.fixture
def drawn_datasets(datasets, monkeypatch):
    """Let commands find `datasets` by their names."""
    monkeypatch.setenv("NORTON_DATASETS", str(datasets))
    return datasets
