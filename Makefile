# make serve    build everything, find how the built-in model runs best on this machine (a minute,
#               the first time), and serve it so on http://127.0.0.1:8000
# make test     set up and run the tests
# make check    lint, types, formatting, import rule
# make sanitize      the tests of the native core under address, undefined-behaviour and thread sanitizers
# make gpu-check     on a machine with an NVIDIA GPU, torch and Triton, nothing built: is all right there, and how
#               fast is it (CONTRIBUTING.md); ARGS="--device cpu --tiny" runs it without a GPU
# make neon-check    the kernel tests on 64-bit Arm, cross-compiled and emulated (Debian; CONTRIBUTING.md)
#
# PYTHON=python3.12  another interpreter        MODEL=...  what `make serve` optimizes and serves
# OPTIMIZE="--slo ... --budget 10m"  what it is to give   ARGS=...  options of `trimtab serve`

PYTHON ?= python3
MODEL ?= builtin
ARGS ?=
OPTIMIZE ?= --budget 45s
# Where the plan and its report are kept.
PLANS ?= build/plans
SANITIZERS ?= address thread
TESTS ?= tests
# Processes that share the tests; 0: none but pytest's own.
WORKERS ?= 2
# A smaller download than the default one where it can be reached:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := CMakeLists.txt $(shell find native -name '*.cpp' -o -name '*.h')

.PHONY: serve test sanitize check gpu-check neon-check format native clean

serve: $(VENV)/.installed
	@$(BIN)/trimtab optimize $(MODEL) --cached --out $(PLANS)/$(notdir $(MODEL:/=)) $(OPTIMIZE) \
	  || [ $$? = 3 ]
	@exec $(BIN)/trimtab serve $(PLANS)/$(notdir $(MODEL:/=))/plan.yaml $(ARGS)

test: $(VENV)/.installed $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(TESTS)

sanitize: $(VENV)/.installed $(VENV)/.test
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/sanitize.py $(SANITIZERS)

check: $(VENV)/.installed $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find native -name '*.cpp' -o -name '*.h')
	$(BIN)/python tools/import_rule.py

# With whatever Python has torch: no environment, no network, no build.
gpu-check:
	@PYTHONPATH=src $(PYTHON) benchmarks/gpu_check.py $(ARGS)

neon-check: $(VENV)/.build
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" tools/neon_check.sh $(ARGS)

format: $(VENV)/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(find native -name '*.cpp' -o -name '*.h')

native: $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "trimtab needs Python 3.10 or later; try make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not create $(VENV): on Debian and Ubuntu, install python3-venv" >&2; exit 2; }
	@touch $@

# Build tools are pinned too, so the build runs without pip's isolation.
$(VENV)/.build: $(VENV)/.created constraints.txt
	@echo "installing the build tools"
	@$(PIP) scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.installed: $(VENV)/.build pyproject.toml $(NATIVE)
	@echo "building the native core and installing what serving needs"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) $(TORCH)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[check]'
	@touch $@

clean:
	rm -rf $(VENV) build src/trimtab/_native*.so
