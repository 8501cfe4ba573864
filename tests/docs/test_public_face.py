"""What the pages on Python use stands in `norton_det` itself."""

import re
from pathlib import Path

import norton_det

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "docs/python.md", "docs/walkthrough.md")]


def test_pages_import_norton_det_alone():
    for page in PAGES:
        assert not re.findall(r"(?:from|import) norton_det\.\w+", page.read_text()), page.name


def test_every_name_that_pages_use_is_offered():
    used = {name for page in PAGES for name in re.findall(r"norton_det\.(\w+)\(", page.read_text())}
    assert len(used) > 8
    assert used <= set(norton_det.__all__)
    assert all(hasattr(norton_det, name) for name in norton_det.__all__)
