"""The import directions of the design: a layer sees only what stands above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "norton_det"
ALLOWED = {
    "files": set(),
    "ops": set(),
    "layers": {"ops"},
    "analysis": {"models"},
    "keypoints": set(),
    "names": set(),
    "replacing": set(),
    "opencv": set(),
    "in_flight": {"ops"},
    "models": {"layers", "files", "keypoints", "names"},
    "compression": {"ops", "layers", "analysis", "models", "files", "names"},
    "data": {"files", "keypoints", "names", "opencv"},
    "evaluation": {"data", "in_flight", "keypoints", "models", "names", "replacing"},
    "engine": {"models", "files"},
    "deploy": {"analysis", "layers", "models", "compression", "files", "in_flight", "keypoints", "replacing"},
    "visualization": {"analysis", "deploy", "files", "in_flight", "keypoints", "names", "opencv"},
    "report": {"analysis", "models", "compression", "data", "evaluation", "visualization"},
    "shrink": {
        *("analysis", "api", "compression", "data", "deploy", "evaluation", "files", "models", "report"),
        "visualization",
    },
    "config": {"names"},
    "api": {"analysis", "models", "compression", "data", "deploy", "evaluation"},
    "builders": {
        *("compression", "config", "data", "deploy", "engine", "evaluation", "files", "keypoints", "models"),
        "names",
    },
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size)


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """The parts of our package that a module imports, wherever in it the import stands."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("norton_det"):
            names = node.module.split(".")
            imported |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {a.name.split(".")[1] for a in node.names if a.name.startswith("norton_det.")}
    return imported


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_stands_above_it(path):
    name = part(path)
    if name in ("cli", "__init__"):
        return
    assert own_imports(path) - {name} <= ALLOWED[name]


def test_only_the_builders_and_the_commands_see_the_configuration():
    readers = {part(path) for path in MODULES if "config" in own_imports(path)}
    assert readers == {"builders", "cli", "__init__"}


def called(path: Path) -> set[str]:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(call.func) for call in calls}


def test_nothing_evaluates_text():
    for path in MODULES:
        assert not called(path) & {"eval", "exec"}, path


def test_json_for_files_is_made_in_one_place_which_knows_no_nan():
    makers = {path.name for path in MODULES if called(path) & {"json.dump", "json.dumps"}}
    assert makers == {"files.py", "annotations.py"}  # the latter packs polygons in memory
