"""The walk-through says what happens."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/walkthrough.md"


def test_every_block_gives_what_stands_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^```.*$", "", PAGE.read_text(), flags=re.MULTILINE)
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page)
    assert (done.failed, done.attempted) == (0, text.count(">>> "))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.pth"]
