PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-dev

# Tests that load OpenVINO and onnxruntime: in processes of their own, which have crashed when they then ran the others.
RUNTIMES := tests/deploy tests/docs tests/cli/test_export_model.py

.PHONY: test million quickstart lint docs clean

quickstart: $(INSTALLED)
	$(BIN)/norton-det quickstart

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(addprefix --ignore=,$(RUNTIMES))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal $(RUNTIMES)

# In rounds: hypothesis remembers all examples of one, which of a million takes more memory than there is.
million: $(INSTALLED)
	for seed in $$(seq 50); do OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/properties/test_parsers.py \
		--hypothesis-profile=many --hypothesis-seed=$$seed || exit 1; done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo site/index.html

$(VENV)/.installed-%: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist output site .mypy_cache .ruff_cache
