# `make train` and `make test` each work alone after `git clone`, with Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help train paper transfer cache bench test test-all test-slurm test-atlas coverage mutants faults lint clean

help:
	@echo "make train      set up, then train zfnet_mini on the phantom (about 4 minutes on 2 cores)"
	@echo "make paper      set up, then the whole paper at small scale, with a ledger (about three quarters of an hour on 2 cores)"
	@echo "make transfer   set up, then public networks and ours on solar cells and Fashion-MNIST, with a ledger (about 40 minutes)"
	@echo "make cache data=imagenet root=DIR   set up, then decode a data set once, for data.cache_images=true (check=true: compare all of it)"
	@echo "make bench      every benchmark beside its peer, into benchmarks/results.json and docs/benchmarks.md (about 40 minutes on quiet cores)"
	@echo "make test       set up, then ruff, mypy and the tests"
	@echo "make test-all   the slow tests too"
	@echo "make test-slurm sweeps on a Slurm that is started for it on this machine (root; apt-get install slurm-wlm munge); not part of the others"
	@echo "make test-atlas the atlas in a browser: pages, search, keys, links, accessibility (chromium, playwright and axe); not part of the others"
	@echo "make faults ROW=kills   one row of docs/reliability.md's table of faults, measured again"
	@echo "make coverage   all tests, and the lines that none of them runs (outputs/coverage)"
	@echo "make mutants    small faults put into the science one at a time: does a test fail? (after make coverage; hours)"
	@echo "make clean      remove .venv, caches and build products; outputs/ stays"

# A second call installs nothing: the stamp is newer than what it depends on.
.venv/installed: requirements.txt requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: $(PYTHON) not found; install Python 3.11 or call make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	@touch $@

train: .venv/installed
	$(BIN)/python train.py

# What a training with data.cache_images=true would decode at its start.
cache: .venv/installed
	@test -n "$(data)" || { echo "make: cache needs data=NAME and root=DIR, such as data=imagenet root=/data/imagenet"; exit 2; }
	$(BIN)/python analyze.py analysis=cache logger=none data=$(data) $(if $(root),data.root=$(root)) $(if $(check),analysis.check=$(check)) $(options)

bench: .venv/installed-dev
	$(BIN)/python benchmarks/bench.py $(if $(only),--only $(only))

# Each process of the tests takes a core and about 2 GB.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "not slurm and not atlas"

# As root, with Debian's slurm-wlm and munge: starts a Slurm on the loopback device and ends it.
test-slurm: .venv/installed-dev
	$(BIN)/python -m pytest -m slurm tests/slurm

# In Debian's Chromium; playwright and axe are not among what the other tests need.
test-atlas: .venv/installed-dev
	@$(BIN)/python -c "import playwright, axe_playwright_python" 2>/dev/null && test -x /usr/bin/chromium || { \
	  echo "make: test-atlas needs: apt-get install chromium, and $(BIN)/pip install playwright axe-playwright-python"; exit 2; }
	$(BIN)/python -m pytest -m atlas tests/atlas

faults: .venv/installed-dev
	$(BIN)/python tests/scripts/faults.py $(ROW)

# Quick and slow tests by themselves: what the quick ones ran stays where the hours of the slow ones are cut short.
coverage: export COVERAGE_FILE = $(CURDIR)/outputs/coverage/data
coverage: lint
	rm -rf outputs/coverage
	$(BIN)/python -m coverage run $(wordlist 2,99,$(PYTEST)) --junitxml=outputs/coverage/tests.xml
	$(BIN)/python -m coverage run $(wordlist 2,99,$(PYTEST)) -m slow --junitxml=outputs/coverage/slow.xml
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

# Goes on where it was stopped: its record is outputs/mutants/.
mutants: .venv/installed-dev
	$(BIN)/python tests/scripts/mutants.py run

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --no-error-summary

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis data_cache build *.egg-info src/*.egg-info

include paper.mk
