# Each target sets up what it needs: `make demo` and `make test` work in a fresh clone with Python 3.11 and git.
#
#   TORCH_INDEX_URL  package index for torch alone, for instance one with CPU builds
#   PYTHON           interpreter to make the environment with

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TRANSFORMERS_VERBOSITY ?= error
# The variable also reaches pip's build environment, an option would not.
export PIP_CONSTRAINT := constraints.txt
SETUP_FILES := pyproject.toml setup.py constraints.txt CMakeLists.txt $(wildcard csrc/*/*)

.PHONY: demo test test-slow test-app bench bench-gpu accuracy accuracy-quick analysis analysis-quick watermark kernels
.PHONY: model model-eval dist docs lint setup clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.eval
	$(BIN)/python -m invfast.demo -o out/demo.png

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 -q --durations=20

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --benchmark-only -q --timeout=0 -p no:xdist $(if $(CASE),-k "$(CASE)")
	$(BIN)/python -m benchmarks.report

# What needs a GPU, in parts of nine minutes: PART="sd15-b1 ops" for some of them.
bench-gpu: $(VENV)/.test $(VENV)/.bench
	PYTHON=$(BIN)/python benchmarks/gpu.sh $(PART)
	$(BIN)/python -m benchmarks.report

# Every method on the bundled model, at most 90 minutes on 2 cores; goes on where it was stopped.
accuracy: $(VENV)/.eval $(VENV)/.train $(VENV)/.analysis
	$(BIN)/python -m benchmarks.accuracy.midpoint
	$(BIN)/python -m benchmarks.accuracy

# At most 5 minutes, from the bundled images alone.
accuracy-quick: $(VENV)/.eval $(VENV)/.train $(VENV)/.analysis
	$(BIN)/python -m benchmarks.accuracy --quick

# What two papers claim, asked of the bundled models, at most two hours on 2 cores; goes on where it was stopped.
analysis: $(VENV)/.eval $(VENV)/.analysis
	$(BIN)/python -m benchmarks.claims

# Small numbers, at most 5 minutes; changes no document.
analysis-quick: $(VENV)/.eval $(VENV)/.analysis
	$(BIN)/python -m benchmarks.claims --quick

# Which inversion finds watermarks, some 20 minutes on one core; goes on where it was stopped.
watermark: $(VENV)/.bench $(VENV)/.test
	$(BIN)/python -m benchmarks.watermark

# The Triton kernels under the interpreter, then every kernel compiled for its targets, its row in docs/kernels.md.
kernels: $(VENV)/.test
	$(BIN)/python -m pytest -q -p no:xdist -m "" tests/test_triton.py
	$(BIN)/python -m benchmarks.kernels --write

# By default glibc gives memory back and faults it in again, 6 to 16 % of a training step.
model: export MALLOC_MMAP_THRESHOLD_ := 4294967296
model: export MALLOC_TRIM_THRESHOLD_ := 8589934592
model: $(VENV)/.train
	$(BIN)/python -m training vae
	$(BIN)/python -m training unet
	$(BIN)/python -m training pixel
	$(BIN)/python -m training flow
	$(BIN)/python -m training export

model-eval: $(VENV)/.train
	$(BIN)/python -m training eval $(if $(MODELS),$(MODELS),invfast/demo/emoji64)

test-slow: $(VENV)/.test $(VENV)/.dist
	$(BIN)/python -m pytest -q -m slow --timeout=3600

# The page of `invfast app` in a Chromium that is on PATH.
test-app: $(VENV)/.test-app
	$(BIN)/python -m pytest -q -m app tests/app

docs: $(VENV)/.test
	$(BIN)/zensical build --strict

# An sdist and a wheel of what is committed, into dist/, each tried in an empty folder.
dist: $(VENV)/.dist
	PYTHON=$(BIN)/python .ci/dist

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.eval

$(VENV)/.python: $(SETUP_FILES)
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else f"invfast needs Python 3.11 or later, {sys.executable} is {v.major}.{v.minor}; pass PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# First, for the extension is built against its headers.
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") torch
	@touch $@

# An extra's stamp means: installed, editable, at the versions of the constraints file.
$(VENV)/.test: EXTRAS := docs,eval,test
$(VENV)/.%: $(VENV)/.python
	@echo "installing invfast[$(or $(EXTRAS),$*)] into $(VENV), a minute or two"
	$(BIN)/python -m pip install -q -e ".[$(or $(EXTRAS),$*)]"
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info invfast/_C.*
