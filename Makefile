# make demo and make test are all that a fresh machine needs: Python 3.11 to 3.13 with venv, and a package registry.
PYTHON = python3
BIN = .venv/bin
READY = .venv/ready
SLURM_TESTS = slurm
# --system-certs: a firewall may have added its certificate to the machine's own.
INSTALL = VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --system-certs

.PHONY: help demo results test test-slow test-slurm lint format lock clean

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18
	@echo "PYTHON=NAME chooses the interpreter of the environment, python3 by default"

demo: $(READY)  ## generate the example story
	$(BIN)/storydiffusion infer

results: $(READY)  ## measure the claims of RESULTS.md on the miniature; an hour or two, resumes where it stopped
	$(BIN)/storydiffusion reproduce

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)  ## run all tests but Slurm's, one by one; the slow ones build full-scale networks with random weights
	$(BIN)/python -m pytest -m "not slurm"

test-slurm: $(READY)  ## run the tests that submit Slurm jobs, on a local two-node Slurm; needs root, installs Slurm on Debian
	slurm/test_cluster.sh run $(BIN)/python -m pytest -m "$(SLURM_TESTS)" tests/slurm

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)  ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Pins stay where pyproject.toml allows; to upgrade one, add for example --upgrade-package torch.
lock: $(READY)  ## update requirements.lock after a change of pyproject.toml
	$(BIN)/uv pip compile --system-certs pyproject.toml --extra dev --extra deepspeed --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean:          ## remove the environment and all caches, not runs/
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, created once and updated when the lock changes. uv comes from the lock too, with its hash.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit( \
		"$(PYTHON) is Python %d.%d: Python 3.11 to 3.13 is needed, choose it with make PYTHON=python3.12" \
		% sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	awk '/^[^ #]/ { wanted = /^uv==/ } wanted' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.lock
	$(INSTALL) --require-hashes --compile-bytecode --requirements requirements.lock
	$(INSTALL) --quiet --no-deps --editable .
	@touch $@
