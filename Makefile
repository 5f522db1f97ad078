# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
MINUTES ?=
KIND ?=
SEED ?=
SECONDS ?=

.PHONY: help run test check format lint types bench bench-check torture soak bundle exe rpm deb sbom audit fuzz fuzz-api clean tools

help:  ## say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("sse-broker needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python setup.cfg setup.py
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python setup.cfg setup.py
	$(BIN)/python -m pip install --quiet --editable '.[test,check]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run  ## start a broker on the embedded backend and print where the demo page is
	$(BIN)/sse-broker $(ARGS)

tools: $(VENV)/.test  ## install what the tests need beside Python packages
	sh tests/install_tools.sh

test: tools  ## run all tests; ARGS="-k word" chooses
	PYTHONDEVMODE=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(VENV)/.test  ## rewrite the code in the one format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

check: lint types test  ## format, lint, types and tests: what CI runs

bench: $(VENV)/.run  ## measure against a bare C send loop; ARGS="--quick --only broadcast"
	$(BIN)/python bench/run.py $(ARGS)

bench-check: $(VENV)/.run  ## fail when a ratio is 15 % worse than bench/baseline.json
	$(BIN)/python bench/run.py --check $(ARGS)

torture: tools  ## break a cluster at random and judge it; MINUTES=60 KIND=cluster SEED=7 SECONDS=45
	$(BIN)/python -m tests.torture $(if $(MINUTES),--minutes $(MINUTES)) $(if $(KIND),--kind $(KIND)) \
		$(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

soak: tools  ## connect, send and close without end and look whether anything grows; MINUTES=60
	$(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES))

bundle:  ## build dist/sse-broker, a folder with the program and all it needs
exe:  ## build dist/sse-broker.exe and a zip with it, on Linux under Wine
rpm:  ## build the rpm from the bundle
deb:  ## build the deb from the bundle
bundle exe rpm deb: $(BIN)/python
	$(BIN)/python packaging/build.py $@

sbom: $(VENV)/.run  ## write dist/sse-broker.cdx.json, what the program is made of
	$(BIN)/python -m pip install --quiet 'cyclonedx-bom >=7'
	$(BIN)/python packaging/sbom.py

audit: $(VENV)/.run  ## look for known holes in what the program uses; needs the network
	$(BIN)/python -m pip install --quiet 'pip-audit >=2.7'
	$(BIN)/pip-audit --skip-editable --progress-spinner off

fuzz: $(VENV)/.test  ## feed made-up bytes to everything that takes a stranger's; ARGS="--cases 100000 --seed 7 token"
	$(BIN)/python -m tests.fuzz $(ARGS)

fuzz-api: tools  ## Schemathesis over /openapi.json; ARGS="--seconds 600 --seed 7"
	$(BIN)/python -m tests.api_fuzz $(ARGS)

clean:  ## remove what these commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
