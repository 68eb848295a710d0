# Every target does its own set-up: a fresh machine needs Python, pip and venv only.
PYTHON ?= python3
BIN := .venv/bin

# As many processes as cores; the tests of a file share what they have trained, and stay together.
PARALLEL := -n logical --dist loadfile

.PHONY: demo test test-fast test-all lint bench-fisher bench-quick gpu-check release clean

demo: .venv/.core
	$(BIN)/python examples/digits.py --methods none ewc

test: .venv/.dev
	$(BIN)/python -m pytest $(PARALLEL)

# What one runs while writing. It has every doctest and something of every room; what takes seconds each is left
# out: bad batches in every rule, nearly all examples and benchmarks, the command line in a process of its own, checkpoints of sharded training,
# what runs on the pretend device, kernels of most rules, a resume of every rule in mid-epoch, interrupts in many lines, a wandb that dies, every rule
# over two processes, beside tied weights, beside a compiled submodule or of great strength, and adapters in images.
test-fast: .venv/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not sweep"

# With the sweeps that take too long for every run.
test-all: .venv/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "sweep or not sweep"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-fisher: .venv/.core
	$(BIN)/python benchmarks/fisher.py

# What the rules add to a step, in a minute.
bench-quick: .venv/.core
	$(BIN)/python benchmarks/overhead.py --quick

# Ten minutes on a GPU, see docs/gpu.md. It installs nothing, since what the other targets install is torch for the CPU:
# it runs in a Python that has torch for CUDA and the package's other dependencies, as in
# PYTHON=/opt/venv/bin/python make gpu-check ARGS="--only ddp fsdp2"
gpu-check:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_check.py $(ARGS)

# As in `make release PYTHONS="python3.10 python3.13"`.
release:
	PYTHONS="$(PYTHONS)" .ci/release

# The stamps follow pyproject.toml: a changed dependency is installed before the next run.
.venv/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev,drift,transformers]'
	touch $@

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache runs wandb lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
