PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests that load OpenVINO and onnxruntime: in a process of their own, which has crashed when it then ran the others.
RUNTIMES := tests/deploy tests/cli/test_export_model.py

.PHONY: test quickstart lint clean

quickstart: $(INSTALLED)
	$(BIN)/norton-det quickstart

test: lint
	$(BIN)/python -m pytest $(addprefix --ignore=,$(RUNTIMES))
	$(BIN)/python -m pytest $(RUNTIMES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist output .mypy_cache .ruff_cache
