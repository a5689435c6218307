# make quickstart   install, then train a small model on Shakespeare, score it and let it write
# make test         install with the test extras, then run the suite
# make check        static checks: format, lint, types, import contracts, spelling
# make test-all     everything, the slow, parity and multi-process tests too
# make bench        benchmarks that fit this machine
# make soak         disturb runs at random: MINUTES=10 SEED=7; ROUND=3 repeats one round
# make goldens      plan the recipes again and rewrite their golden plans (Python 3.12 or later)
#
# PYTHON=python3.12 make quickstart   uses another interpreter (3.11 or later)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := $(if $(wildcard constraints.txt),--constraint constraints.txt)

define OFFLINE
echo "install: pip could not fetch the packages (see above)."; \
echo "Check the network or proxy, or point pip at a mirror (PIP_INDEX_URL), and run make again."; \
exit 2
endef

.PHONY: quickstart install test test-all check bench soak goldens clean

# Large pages spare XLA most of its page faults on a CPU; the time that they cost is in the noise.
quickstart: install
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/lm train configs/quickstart.py

install: $(VENV)/installed

# A few at a time: each worker holds eight virtual devices and up to 2 GiB of memory.
test: $(VENV)/installed-dev
	$(BIN)/pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

test-all: $(VENV)/installed-parity
	$(BIN)/pytest -q -m "not gpu and not tpu and not network"

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell lm launch configs README.md

bench: $(VENV)/installed-parity
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/loader.py
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/saving.py

# It prints its seed; a round that went wrong:  make soak SEED=7 ROUND=3
MINUTES ?= 10
soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ROUND),--round $(ROUND))

# Another Python than that of .venv:  make goldens PYTHON=python3.13 VENV=.venv-plan
goldens: $(VENV)/installed-plan
	$(BIN)/python -m tests.plan.golden $(NAMES)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "install: lm needs CPython 3.11 or later, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || echo not there)."; \
	  echo "Install a newer one and run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "install: '$(PYTHON) -m venv' failed (see above)." \
	    "On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 2; }

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "install    lm and what it needs, into $(VENV)"
	@$(PIP) install $(CONSTRAINTS) --editable . || { $(OFFLINE); }
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "install    the test extras"
	@$(PIP) install $(CONSTRAINTS) --editable '.[dev]' || { $(OFFLINE); }
	@touch $@

$(VENV)/installed-parity: $(VENV)/installed-dev
	@echo "install    torch and transformers, for the parity tests"
	@$(PIP) install $(CONSTRAINTS) --editable '.[dev,parity]' || { $(OFFLINE); }
	@touch $@

$(VENV)/installed-plan: $(VENV)/installed-dev
	@echo "install    libtpu, to compile for TPUs that are not here"
	@$(PIP) install $(CONSTRAINTS) --editable '.[dev,plan]' || { $(OFFLINE); }
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
