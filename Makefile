# Every target sets up what it needs in .venv; only Python >= 3.10, pip and make have to be there.
PYTHON ?= python3
EXAMPLES ?= 1000
BIN := .venv/bin

.PHONY: help demo test test-all fuzz lint bench stamps clip-art clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/'

.venv/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable ".[all]"
	touch $@

demo: .venv/.installed ## Train on real pictures with English names, ask in 14 languages; writes demo-output/
	$(BIN)/freezealign demo --output demo-output

test: .venv/.installed ## Run the quick tests, in up to four processes
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m "not slow and not gpu"

test-all: .venv/.installed ## Run every test, the slow ones on real encoders and data too
	$(BIN)/python -m pytest -m "not gpu"

fuzz: .venv/.installed ## Damage every kind of input EXAMPLES=1000 times, and count what comes of it
	FREEZEALIGN_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -q --runxfail --tb=short tests/fuzz

lint: .venv/.installed ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.installed ## Measure ratios against the obvious alternatives; writes benchmarks/RESULTS.md
	failed=0; for script in $(filter-out benchmarks/report.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || failed=1; done; exit $$failed

stamps: ## Fetch the Tux Paint stamps into stamps/, without root, where apt exists
	@command -v apt-get >/dev/null || { echo "make stamps needs apt-get; elsewhere unpack Debian's tuxpaint-stamps-default"; exit 1; }
	mkdir -p stamps
	cd stamps && apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb . && rm tuxpaint-stamps-default_*.deb

clip-art: ## Fetch Debian's Open Clip Art into clip-art/, without root, where apt exists
	@command -v apt-get >/dev/null || { echo "make clip-art needs apt-get; elsewhere unpack Debian's openclipart-png and -svg"; exit 1; }
	mkdir -p clip-art
	cd clip-art && apt-get download openclipart-png openclipart-svg && for package in *.deb; do dpkg -x $$package .; done && rm *.deb

clean: ## Remove the environment and everything that was made
	rm -rf .venv build dist *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
