PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-dev

# Tests that load OpenVINO and onnxruntime: in processes of their own, which have crashed when they then ran the others.
RUNTIMES := tests/deploy tests/docs tests/cli/test_export_model.py

.PHONY: test matrix million quickstart lint docs package clean

quickstart: $(INSTALLED)
	$(BIN)/norton-det quickstart

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(addprefix --ignore=,$(RUNTIMES))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal $(RUNTIMES)

# The wheel in fresh environments, of every Python that is found, with the oldest torch that is allowed and the newest.
PYTHONS ?= python3.11 python3.12 python3.13
OLDEST := torch==2.11.0 torchvision==0.26.0
matrix: package
	@for python in $(PYTHONS); do for torch in "$(OLDEST)" "torch torchvision"; do \
		$$python --version >/dev/null 2>&1 || { echo "matrix: $$python: not here"; continue; }; \
		folder=$$(mktemp -d) && $$python -m venv $$folder && \
		$$folder/bin/pip install --quiet --disable-pip-version-check pytest $$torch "$$(ls $$PWD/dist/*.whl)[deploy]" && \
		(cd tests && OMP_NUM_THREADS=2 $$folder/bin/python -m pytest -q -c /dev/null -p no:cacheprovider \
			--rootdir=. ops layers models compression/test_compress.py deploy/test_optimize.py) && \
		echo "matrix: $$python, $$torch: passed" || { echo "matrix: $$python, $$torch: failed"; exit 1; }; \
		rm -rf $$folder; done; done

# What a release consists of, with its metadata checked.
package: $(VENV)/.installed-release
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

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
