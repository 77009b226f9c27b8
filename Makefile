# make run    the whole study on the embedded default: figures in figures/, tables in data/results/
# make test   lint, types and all tests
# Both work from a bare clone: they make .venv and install into it first.

PYTHON ?= python3
CORES ?= all
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test full again check figures report real install lint schema readme pull clean
run: install
	snakemake --cores $(CORES)
	assyllm show

test: install lint
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

full: install
	snakemake --cores $(CORES) full
	assyllm show --study full

# the default study once more, from nothing, and whether its tables are those of data/results
again: install
	rm -rf build/again
	mkdir -p build/again
	cp params.yaml build/again/
	snakemake --cores $(CORES) --directory build/again
	assyllm reproduced data/results build/again/data/results

# a part of it (study.check in params.yaml), within minutes
check: install
	rm -rf build/check
	mkdir -p build/check
	cp params.yaml build/check/
	snakemake --cores $(CORES) --directory build/check check
	assyllm reproduced data/results build/check/data/results/check

figures: install
	snakemake -s workflow/rules/figures.smk --cores $(CORES) redraw --forceall

# of the whole study where it was run here, else of the figures alone
report: figures
	mkdir -p build
	snakemake $(if $(wildcard data/runs),,-s workflow/rules/figures.smk) --cores 1 --report build/report.html
	dvc plots show --out build/plots

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

readme: install
	python -m assyllm.readme

pull: install
	dvc pull
	snakemake --cores 1 --touch --forceall

clean:
	rm -rf data/zoo data/pool data/sensitivity data/quantized data/precision data/tasks data/partition data/scores data/runs data/cost \
	  data/checkpoints data/tuning logs .snakemake
