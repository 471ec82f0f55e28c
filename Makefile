PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Quiet but for errors: pip's notices of newer versions and of places it does not find help nobody here.
INSTALL = $(BIN)/pip --disable-pip-version-check install -qq --editable
INSTALLING = @echo "installing ssl-bench and what it needs into $(VENV): a few minutes, torch alone is gigabytes"

.PHONY: demo test test-browser test-slurm bench verdicts mutate results results-gpu gpu-check docs lint format clean

demo: $(VENV)/installed  ## pre-train MAE on the embedded images and evaluate it
	$(BIN)/ssl-bench run --method mae --mask-ratio 0.75

test: $(VENV)/installed-test  ## run the whole test suite
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-browser: $(VENV)/installed-test  ## open the report in Chromium, which must be installed
	REQUIRE_BROWSER=1 $(BIN)/python -m pytest -m browser tests

test-slurm: $(VENV)/installed-test  ## submit to a Slurm; as root on Debian, to one that is installed and started here
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		trap tests/slurm/down.sh EXIT && \
		SLURM_DEV_CPUS=$${SLURM_DEV_CPUS:-2} tests/slurm/up.sh && \
		. "$${SLURM_DEV_DIR:-/var/spool/slurm-dev}/env.sh"; \
	fi && \
	REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm tests/slurm

PARTS ?=

bench: $(VENV)/installed  ## measure speed and memory beside other people's code; PARTS=all for everything
	$(BIN)/python -m benchmarks $(PARTS)

verdicts: $(VENV)/installed  ## how often comparisons raise false alarms and find true leads, by simulation
	$(BIN)/python -m benchmarks.verdicts

mutate: $(VENV)/installed-test  ## would the tests notice? MINUTES at a time; repeat it until nothing is left
	$(BIN)/python -m benchmarks.mutate --minutes $(MINUTES)

results: $(VENV)/installed  ## the comparison under results/, every method tuned alike, MINUTES at a time; repeat it until it no longer says "not done yet"
	MINUTES=$(MINUTES) results/comparison.sh

MINUTES ?= 10

results-gpu: $(VENV)/installed  ## the same on CIFAR-10 with a GPU, MINUTES at a time; repeat it until it no longer says "not done yet"
	PRESET=small MINUTES=$(MINUTES) results/comparison.sh

gpu-check: $(VENV)/installed-test  ## on a GPU: its tests, a step's launches, images a second, a short comparison (DATA=)
	$(BIN)/python -m benchmarks.gpu_check --minutes $(MINUTES) --data "$(DATA)"

docs: $(VENV)/installed-docs  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/installed-lint  ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/numbers_lock.py --check

format: $(VENV)/installed-lint  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and everything built
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
