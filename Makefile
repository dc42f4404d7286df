# make demo | make test: each sets up its own virtual environment on a bare machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the CPU build that the project is tested with; any release in pyproject's range works
TORCH := torch==2.13.0

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/saccade demo

test: $(VENV)/.dev
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff format src tests scripts
	$(BIN)/ruff check --fix src tests scripts
	$(BIN)/mypy

$(VENV)/.base:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saccade needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[train,tools,tesseract,serve,ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
