PYTHON ?= python3
PARTS ?=
DATA ?=
VENV := .venv
BIN := $(VENV)/bin

# Quiet but for errors: pip's notices of newer versions and of places it does not find help nobody.
INSTALL = $(BIN)/pip --disable-pip-version-check install -qq --editable
INSTALLING = @echo "installing ssl-bench and what it needs into $(VENV): a few minutes, torch alone is gigabytes"

# For how long what can be resumed works at a time.
mutate results results-gpu: MINUTES ?= 10
gpu-check: MINUTES ?= 8

.PHONY: demo test test-browser test-slurm bench verdicts mutate results results-gpu gpu-check docs lint format clean

# Pre-train MAE on the embedded images and evaluate it.
demo: $(VENV)/installed
	$(BIN)/ssl-bench run --method mae --mask-ratio 0.75

# Run the whole test suite.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# Open the report in Chromium, which must be installed.
test-browser: $(VENV)/installed-test
	REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m browser tests

# Submit to a Slurm; as root on Debian, to one that is installed and started here.
test-slurm: $(VENV)/installed-test
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		trap tests/slurm/down.sh EXIT && \
		SLURM_DEV_CPUS=$${SLURM_DEV_CPUS:-2} tests/slurm/up.sh && \
		. "$${SLURM_DEV_DIR:-/var/spool/slurm-dev}/env.sh"; \
	fi && \
	REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm tests/slurm

# Measure speed and memory beside other people's code; PARTS=all for everything.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(PARTS)

# How often comparisons raise false alarms and find true leads, by simulation.
verdicts: $(VENV)/installed
	$(BIN)/python -m benchmarks.verdicts

# Would the tests notice? MINUTES at a time; repeat it until nothing is left.
mutate: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.mutate --minutes $(MINUTES)

# The comparison under results/, every method tuned alike, MINUTES at a time; repeat it until it no
# longer says "not done yet".
results: $(VENV)/installed
	MINUTES=$(MINUTES) results/comparison.sh

# The same on CIFAR-10 with a GPU, MINUTES at a time.
results-gpu: $(VENV)/installed
	PRESET=small MINUTES=$(MINUTES) results/comparison.sh

# On a GPU: its tests, a step's launches, images a second, a short comparison (DATA=).
gpu-check: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.gpu_check --minutes $(MINUTES) --data "$(DATA)"

# Build the documentation into build/site.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Check style, types and the direction of imports.
lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/numbers_lock.py --check

# Format the code.
format: $(VENV)/installed-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Remove the virtual environment and everything built.
clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(INSTALLING)
	$(INSTALL) .
	touch $@

$(VENV)/installed-test: $(BIN)/python pyproject.toml
	$(INSTALLING)
	$(INSTALL) '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(BIN)/python pyproject.toml
	$(INSTALLING)
	$(INSTALL) '.[docs]'
	touch $@ $(VENV)/installed

$(VENV)/installed-lint: $(BIN)/python pyproject.toml
	$(INSTALLING)
	$(INSTALL) '.[test,lint]'
	touch $@ $(VENV)/installed $(VENV)/installed-test
