# make run    the whole study on the embedded default: figures in figures/, tables in data/results/
# make test   lint, types and all tests
# Both work from a bare clone: they make .venv and install into it first.

PYTHON ?= python3
CORES ?= all
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test full figures real install lint schema pull clean
run: install
	snakemake --cores $(CORES)

test: install lint
	python -m pytest

full: install
	snakemake --cores $(CORES) full

figures: install
	snakemake -s workflow/rules/figures.smk --cores $(CORES)

real: install
	snakemake --cores $(CORES) --directory presets/real

install: $(VENV)/installed

# an install that was cut off leaves no mark, so the next call takes it up again
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy

schema: install
	assyllm params schema --out workflow/schemas/params.schema.json

pull: install
	dvc pull
	snakemake --cores 1 --touch

clean:
	rm -rf data/zoo data/pool data/sensitivity data/quantized data/precision data/tasks data/partition data/scores data/runs data/cost \
	  data/checkpoints logs .snakemake
