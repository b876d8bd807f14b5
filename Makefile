# Every target sets up what it needs in $(VENV), once, and again only when setup.cfg or constraints.txt change.

# The first Python of at least 3.10 that can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && \
	echo $$python && break; done)
VENV ?= .venv
WORKERS ?= 2
# Threads of torch in the tests, and the order of `make test-matrix`: another one each day.
THREADS ?= 1
ORDER ?= $(shell date +%Y%j)

BIN = $(VENV)/bin/python
PYTEST = MPLBACKEND=Agg OMP_NUM_THREADS=$(THREADS) $(BIN) -m pytest -n $(WORKERS) --dist worksteal
NOTEBOOKS = $(patsubst tutorials/%.md,tutorials/notebooks/%.ipynb,$(wildcard tutorials/[0-9]*.md))
WHEEL = build/wheel
MATRIX = test-matrix-default test-matrix-avx2 test-matrix-elsewhere

.PHONY: help demo test test-all test-gpu test-compiler test-matrix $(MATRIX) coverage bench posteriordb-given \
	bench-speed bench-posteriors bench-densities bench-lattices \
	bench-calibration bench-synthetic bench-verdicts bench-ablations bench-costs bench-digits bench-autoencoders bench-tabular bench-peers bench-divergence bench-plain_svi bench-centering bench-structure bench-structure_mcmc bench-minibatches bench-svi_minibatches bench-svi_steps bench-loops bench-fooled bench-ratings bench-jko bench-fashion bench-moving bench-sequences bench-paths bench-scale bench-gpu \
	docs check-pages notebooks lint format wheel-test clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        fit two real models and print the verdict"
	@echo "make test        the demo, then the tests"
	@echo "make test-all    every test, the slow ones too"
	@echo "make test-gpu    the laws of all layers, all guides and the engines on a CUDA device"
	@echo "make test-compiler  the tests of recordings, compiled code and its cache"
	@echo "make test-matrix the tests with other instructions, threads and settings, in random order"
	@echo "make coverage    the tests, and which lines they reach"
	@echo "make bench       speed, quality, density, cost and peer tables (needs POSTERIORDB)"
	@echo "make docs        the documentation, into docs/_build/html; runs the tutorials"
	@echo "make check-pages look at the documentation in a browser: does anything not fit, is a picture missing"
	@echo "make notebooks   the tutorials as executed notebooks, into tutorials/notebooks"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff mend what it can"
	@echo "make wheel-test  build a wheel and run the README's examples with it in an empty environment"
	@echo "make clean       remove what was built, but not $(VENV)"
	@echo "Another Python in an environment of its own: make test PYTHON=python3.12 VENV=.venv-3.12"

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 found: install one, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# $(VENV)/.test: the package itself, editable, with its extra "test"; and so on for the other extras.
$(VENV)/.%: setup.cfg pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing pyro_nflows[$*] into $(VENV); the first time it takes minutes"
	$(BIN) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

demo: $(VENV)/.test
	MPLBACKEND=Agg $(BIN) tutorials/demo.py

test: demo
	$(PYTEST)

test-all: $(VENV)/.test
	$(PYTEST) -m "" --timeout 3600 --durations 20

test-gpu: $(VENV)/.test
	$(PYTEST) -m "gpu and not slow"

# The compiler by itself: recordings, the C made of them, the cache, layers and faults that go through it
test-compiler: $(VENV)/.test
	$(PYTEST) tests/engine/test_tape.py tests/engine/native tests/inference/test_recorded.py

test-matrix: $(MATRIX)

# Torch, MKL and our compiled code with the instructions that every x86-64 processor has
test-matrix-default: export ATEN_CPU_CAPABILITY = default
test-matrix-default: export MKL_CBWR = COMPATIBLE
test-matrix-default: export PYRO_NFLOWS_CFLAGS = $(if $(filter x86_64,$(shell uname -m)),-march=x86-64)
test-matrix-avx2: export ATEN_CPU_CAPABILITY = avx2
test-matrix-avx2: THREADS = 2
# Threads that wait must not keep the cores from those of another worker
test-matrix-avx2 test-matrix-elsewhere: export OMP_WAIT_POLICY = PASSIVE
# As this machine is, but for what its user has set: an empty home, another language and time zone
test-matrix-elsewhere: THREADS = 2
test-matrix-elsewhere: export HOME = $(abspath build/home)
test-matrix-elsewhere: export LC_ALL = C
test-matrix-elsewhere: export TZ = Asia/Kathmandu
test-matrix-elsewhere: export PYTHONHASHSEED = 1

$(MATRIX): $(VENV)/.test
	@echo "$@, in an order that make $@ ORDER=$(ORDER) repeats"
	@rm -rf build/home && mkdir -p build/home
	$(PYTEST) --random-order --random-order-bucket=module --random-order-seed=$(ORDER)

coverage: $(VENV)/.test $(VENV)/.dev
	$(PYTEST) --cov

bench: bench-posteriors bench-synthetic bench-verdicts bench-ablations bench-densities bench-lattices bench-speed bench-calibration \
	bench-costs bench-digits bench-autoencoders bench-tabular bench-peers bench-divergence bench-plain_svi bench-centering bench-structure bench-structure_mcmc bench-minibatches bench-svi_minibatches bench-svi_steps bench-loops bench-fooled bench-ratings bench-jko bench-moving bench-sequences bench-paths bench-scale

posteriordb-given:
	@test -d "$(POSTERIORDB)" || { echo "Say where posteriordb's posterior_database is: make bench POSTERIORDB=..."; exit 1; }

bench-posteriors bench-verdicts bench-ablations: bench-%: posteriordb-given $(VENV)/.bench
	$(BIN) -m benchmarks.$*

bench-speed bench-densities bench-lattices bench-calibration bench-synthetic bench-costs bench-digits bench-autoencoders bench-tabular bench-peers bench-divergence bench-plain_svi bench-centering bench-structure bench-structure_mcmc bench-minibatches bench-svi_minibatches bench-svi_steps bench-loops bench-fooled bench-ratings bench-jko bench-fashion bench-moving bench-sequences bench-paths bench-scale bench-gpu: bench-%: $(VENV)/.bench
	$(BIN) -m benchmarks.$*

docs: $(VENV)/.docs
	$(BIN) -m sphinx -E -T -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

# In a headless Chromium, at 1280 and 390 pixels
check-pages: $(VENV)/.docs
	$(BIN) docs/check_pages.py docs/_build/html

notebooks: $(NOTEBOOKS)

tutorials/notebooks/%.ipynb: tutorials/%.md $(VENV)/.docs
	@mkdir -p $(@D)
	$(BIN) -m jupytext --to ipynb --output $@ $<
	$(BIN) -m jupyter execute --inplace $@

lint: $(VENV)/.dev
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

format: $(VENV)/.dev
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

wheel-test: $(VENV)/.made
	rm -rf build
	$(BIN) -m pip wheel -q --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	$(BIN) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(WHEEL)/*.whl
	$(WHEEL)/venv/bin/python tests/run_readme.py --installed

clean:
	rm -rf build dist docs/_build docs/tutorials tutorials/notebooks *.egg-info .mypy_cache .pytest_cache .ruff_cache
