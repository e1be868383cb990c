# make demo and make test are all that a fresh machine needs: Python 3.11 or 3.12 with venv, and a package registry.
PYTHON = python3
BIN = .venv/bin
READY = .venv/ready
SLURM_TESTS = slurm
# The machine's own certificates: a firewall may have put its one there.
INSTALL = VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --system-certs

.PHONY: help demo results test test-slow test-slurm lint format lock clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18
	@echo "PYTHON=NAME chooses the interpreter of the environment, python3 by default"

demo: $(READY)  ## tell the example story
	$(BIN)/python infer.py

results: $(READY)  ## measure what RESULTS.md claims, on the miniature; takes an hour or two, goes on where it was stopped
	$(BIN)/python -m storydiffusion.commands.reproduce

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)  ## run the slow tests too, one by one: full-scale networks at random weights
	$(BIN)/python -m pytest -m "not slurm"

test-slurm: $(READY)  ## train as jobs of a Slurm of two nodes, started for it; needs root, installs it on Debian
	slurm/test_cluster.sh run $(BIN)/python -m pytest -m "$(SLURM_TESTS)" tests/slurm

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)  ## format and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Pins stay as they are where pyproject.toml allows; to renew one, add for example --upgrade-package torch.
lock: $(READY)  ## lock anew, after a change of pyproject.toml
	$(BIN)/uv pip compile --system-certs pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean:          ## remove the environment and all caches; told stories under runs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, made once and brought up to date when the lock changes. uv comes from the lock too, hash and all.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit( \
		"$(PYTHON) is Python %d.%d: Python 3.11 or 3.12 is needed, choose it with make PYTHON=python3.12" \
		% sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	awk '/^[^ #]/ { wanted = /^uv==/ } wanted' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.lock
	$(INSTALL) --require-hashes --requirements requirements.lock
	$(INSTALL) --quiet --no-deps --editable .
	@touch $@
