"""The wheel is whole: installed into a fresh environment, its command works from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def fresh_environment(tmp_path_factory):
    """An environment with nothing but our wheel in it; the dependencies are borrowed from the one of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    source = folder / "source"
    _copy_source(source)
    subprocess.run([*build, str(source)], check=True)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    purelib = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (purelib / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    return folder / "venv"


def _copy_source(target):
    """What the wheel is made from, without build leftovers of the working tree."""
    target.mkdir()
    for name in ("norton_det", "configs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)


def run(environment, folder, *words):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / words[0], *words[1:]], cwd=folder, env=clean, text=True, capture_output=True
    )


def test_the_command_works_from_an_empty_folder(fresh_environment, tmp_path):
    done = run(
        fresh_environment,
        tmp_path,
        "norton-det",
        "analyze",
        "--config",
        "quickstart.yaml",
        "--input-size",
        "64",
        "64",
        "--json",
        "counts.json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "counts.json").read_text())["models"]["compressed"]["parameters"] > 0


def test_it_is_the_wheel_that_runs(fresh_environment, tmp_path):
    done = run(fresh_environment, tmp_path, "python", "-c", "import norton_det; print(norton_det.__file__)")
    assert str(fresh_environment) in done.stdout


def test_every_config_travels(fresh_environment, tmp_path):
    code = (
        "from norton_det.config import configs_folder as f;"
        "print(*sorted(str(path.relative_to(f())) for path in f().rglob('*.yaml')))"
    )
    done = run(fresh_environment, tmp_path, "python", "-c", code)
    assert done.stdout.split() == sorted(
        str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")
    )


def test_the_style_of_reports_travels(fresh_environment, tmp_path):
    code = "from norton_det.report.page import render; print('prefers-color-scheme' in render('run', '', []))"
    assert run(fresh_environment, tmp_path, "python", "-c", code).stdout.strip() == "True"


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "norton_det").rglob("*.py")}
    assert found == {name for name in listed if ".configs" not in name}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [({}, "PASSIVE 1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None")],
    ids=["unset", "set"],
)
def test_import_brings_no_library_of_windows_or_plots_and_leaves_cores_that_it_waits_on(policy, expected):
    code = (
        "import os, sys; from importlib import import_module; import norton_det.api;"
        "from norton_det.cli.main import COMMANDS;"
        "print('cv2' in sys.modules, 'matplotlib' in sys.modules);"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'));"
        "[import_module('norton_det.cli.' + name.replace('-', '_')) for name in COMMANDS];"
        "print('cv2' in sys.modules)"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    } | policy
    told = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert told.split() == ["False", "False", *expected.split(), "False"]
