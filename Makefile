# `make quickstart` and `make test` do all of their own set-up: .venv, pinned packages, compiled ops. Each set-up phase
# leaves a stamp in .venv, so a second call starts at once and a changed lock or C++ file redoes only its own phase.
#
# pip is used with the indexes it is configured with (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
UV_VERSION := 0.13.9
OP_SOURCES := CMakeLists.txt pyproject.toml $(shell find cmake csrc -type f 2>/dev/null)
ARGS ?=
PYTEST_ARGS ?=
# A file of tests stays in one process, so what its tests share is made once. Each may start a server of 2 GB.
TEST_PROCESSES ?= 2
# Of each process: OpenMP threads that wait for work spin, and would take the other processes' cores.
TEST_THREADS ?= 1

# Three processes import vLLM at every start of a server; without cached byte code each pays 20 s more.
unexport PYTHONDONTWRITEBYTECODE
# An activated conda or PYTHONPATH must not leak into .venv.
unexport PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup quickstart test test-late test-gpu nvcc bench bench-peers lint soak lock clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.imported $(VENV)/.built ## create .venv, install the lock, build the ops

quickstart: setup ## train a small model with GRPO and with Clip-Cov; the report is at the end
	$(BIN)/python -m pyrl quickstart $(ARGS)
	@echo "train your own: source $(BIN)/activate, then pyrl train; see README.md"

test: setup ## run every test but the late ones (PYTEST_ARGS="-k word"; PYRL_DATA_DIR points at real data)
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile \
		--no-loadscope-reorder $(PYTEST_ARGS)

test-late: setup ## run what CI runs after the suite: the tests marked late, such as the wheel's, and style
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest --late $(PYTEST_ARGS)
	$(BIN)/ruff check .

# With the packages of $(PYTHON), a PYTHONPATH included: a GPU machine's own torch, in place of the lock; and with the cmake
# on PATH, 3.26 or later (Debian 12 ships 3.25: pip install cmake).
test-gpu: ## on a GPU machine: build the ops for PYTHON's own torch, run the tests that need the GPU; no .venv, no vLLM
	@export PYTHONPATH="$(PYTHONPATH)"; set -x; \
	$(PYTHON) -c 'import torch; torch.cuda.is_available() or exit("error: this torch sees no CUDA device")'; \
	cmake -S . -B build/gpu -DPython_EXECUTABLE="$$(command -v $(PYTHON))" -DPYRL_CUDA=on; \
	cmake --build build/gpu --parallel; \
	PYRL_OPS_LIBRARY=$(CURDIR)/build/gpu/libpyrl_ops.so $(PYTHON) -m pytest -m cuda tests/ops $(PYTEST_ARGS)

nvcc: $(VENV)/.packages ## fetch a CUDA compiler into build/nvcc (130 MB), where the machine has none; prints its folder
	@scripts/provide_nvcc.sh $(BIN)/python $(CURDIR)/build/nvcc

bench: setup ## measure the ops against PyTorch and other trainers' kernels; the table goes to benchmarks/results
	@KINETO_LOG_LEVEL=99 $(BIN)/python -m benchmarks $(ARGS)

bench-peers: setup ## fetch those other kernels into build/bench-peers; only a machine with a GPU can run them
	@$(BIN)/python -m benchmarks.install

lint: setup ## check style
	$(BIN)/ruff check .

soak: setup ## kill a run at 20 random moments, resume each, compare with an unbroken run
	$(BIN)/python -m tests.soak $(ARGS)

lock: setup ## resolve requirements/*.in into the lock files
	$(BIN)/python -m pip install -qq --target build/lock-tools --upgrade uv==$(UV_VERSION)
	$(BIN)/python scripts/lock.py build/lock-tools/bin/uv

clean: ## remove build output and caches, keep .venv
	rm -rf build .pytest_cache .hypothesis .ruff_cache
	rm -f $(VENV)/.built
	find pyrl tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# --- set-up phases -----------------------------------------------------------------------------------------------------

$(VENV)/.created:
	@scripts/check_prerequisites.sh $(PYTHON)
	@echo "[1/4] $(VENV) from $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.packages: $(LOCK) $(VENV)/.created
	@echo "[2/4] packages of $(LOCK): about 0.8 GB to fetch, 3 GB unpacked; a few minutes"
	@$(BIN)/python -m pip install -qq --no-deps $$(grep '^pip==' $(LOCK))
	@$(BIN)/python scripts/check_torch_build.py $(LOCK)
	@$(BIN)/python -m pip install -qq --no-deps --no-compile --build-constraint $(LOCK) --requirement $(LOCK)
	@scripts/provide_libnuma.sh $(VENV)
	@touch $@

$(VENV)/.imported: $(VENV)/.packages
	@echo "[3/4] first import of vLLM and Megatron-Core"
	@$(BIN)/python -W ignore -c 'import vllm.entrypoints.openai.api_server, megatron.core, transformers'
	@touch $@

$(VENV)/.built: $(OP_SOURCES) $(VENV)/.packages
	@echo "[4/4] compiling the ops"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -qq --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c 'from pyrl.ops import build_info; i = build_info(); \
	print("      built the CPU ops" + (" and the CUDA ops: " + " ".join(i["architectures"]) if i["cuda"] else ""))'
	@echo "      pyrl and torchrun are in $(BIN): source $(BIN)/activate puts them on the PATH"
	@touch $@
