"""docs/reliability.md names tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line.strip("| \n").split(" | ") for line in TEXT.splitlines() if "::" in line]
FAULTS = [row for row in ROWS if len(row) == 3]


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_ends_with_tests_that_exist() -> None:
    for *told, tests in ROWS:
        assert told and all(told)
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert len(named) == tests.count("::") > 0
        for path, name in named:
            assert name in functions(path), f"{path}::{name}"


def test_the_count_is_that_of_the_faults() -> None:
    found = re.search(r"^(\d+) faults", TEXT, re.MULTILINE)
    assert found and int(found[1]) == len(FAULTS)
