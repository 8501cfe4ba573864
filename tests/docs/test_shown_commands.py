"""The commands that the pages and the headers of configs show are commands that there are, with options they have."""

import re
import shlex
from pathlib import Path

import pytest

from norton_det.cli.main import COMMANDS, main
from norton_det.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/*.yaml"))]
SHOWN = re.compile(r"^(?: {4}|#   ).*?((?:tools|demo)/\w+\.py|norton-det [a-z-]+)(?: (.*))?$", re.MULTILINE)


def shown_commands():
    for page in PAGES:
        for start, words in SHOWN.findall(page.read_text().replace("\\\n", " ")):
            launcher = ROOT / start
            name = re.search(r'launch\("(.+)"\)', launcher.read_text())[1] if launcher.is_file() else start.split()[1]
            yield pytest.param(name, shlex.split(words, comments=True), id=f"{page.name}: {start} {words}")


@pytest.mark.parametrize(("name", "words"), list(shown_commands()))
def test_a_shown_command_is_understood(name, words, monkeypatch):
    asked = []
    monkeypatch.setattr(f"norton_det.cli.{name.replace('-', '_')}.run", asked.append)
    assert main([name, *words]) == 0
    if hasattr(asked[0], "overrides"):
        load_config(asked[0].config, asked[0].overrides)


def test_the_page_of_commands_shows_every_command():
    page = (ROOT / "docs/commands.md").read_text()
    launchers = {
        path.relative_to(ROOT).as_posix() for folder in ("tools", "demo") for path in ROOT.glob(f"{folder}/*.py")
    }
    assert len(launchers) == len(COMMANDS)
    assert {name for name in launchers if name not in page} == {"tools/quickstart.py"}
