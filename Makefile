# Commands of this repository. A machine with Python 3.11 or newer (with venv), make, git and a package index is enough.
PYTHON ?= python3
PYTEST_ARGS ?=
# Processes that `make test` and `make coverage` spread their tests over. Each takes five seconds of work to start; most tests wait.
JOBS ?= 6
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
CODE := airflow_provider_llamachat dags_examples docs tests .ci
LONG := system or browser or matrix or chaos or celery or long or airflow or bench

PARALLEL = $(if $(filter-out 1,$(JOBS)),-n $(JOBS))

export PYTHON
# Without byte code on disk, each of these processes would compile all tests again.
unexport PYTHONDONTWRITEBYTECODE
# Whatever a command imports or starts, the user's own ~/airflow stays untouched.
export AIRFLOW_HOME := $(CURDIR)/$(VENV)/airflow-home
export AIRFLOW__CORE__LOAD_EXAMPLES := False

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml .ci/constraints.txt .ci/make-venv
	@echo "Installing Airflow, this provider and the development tools into $(VENV) ..."
	@.ci/make-venv $(VENV) --editable '.[dev]'
	@touch $@

# Extras for one suite each, on top of the above.
$(VENV)/.installed-%: $(VENV)/.installed
	@.ci/make-venv $(VENV) --editable '.[dev,$*]'
	@touch $@

.PHONY: help
help: ## what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.installed ## the environment (.venv) that everything below uses; made when it is needed

# KEEP=1 leaves Airflow running until Ctrl-C.
.PHONY: demo
demo: $(VENV)/.installed ## run the example Dag on a real Airflow against the embedded emulator, and print its XComs and the page to see them on
	@$(BIN)/python -m tests.system.demo

.PHONY: test
test: $(VENV)/.installed ## the test suite without the long suites below
	$(RUN) -m pytest -m "not ($(LONG))" $(PARALLEL) $(PYTEST_ARGS)

.PHONY: coverage
coverage: $(VENV)/.installed ## `make test` with branch coverage, which has a lower bound
	$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test RUN="$(BIN)/coverage run"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: lint
lint: $(VENV)/.installed-browser ## ruff, mypy, and whether generated code is up to date
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/python .ci/make_sync.py --check
	$(BIN)/mypy

.PHONY: sync
sync: $(VENV)/.installed ## the synchronous client, made from the asynchronous one
	@$(BIN)/python .ci/make_sync.py

.PHONY: long
long: export DAG_PROCESSES ?= 4
long: $(VENV)/.installed ## tests of the same kind as `make test` that take longer than it may
	$(BIN)/python -m pytest -m "long or airflow" $(PARALLEL) $(PYTEST_ARGS)

# BUSY_TASKS=200 BUSY_SESSIONS=20 is the long form of the tests of tasks that share sessions, which otherwise are 12 tasks in 3 sessions.
.PHONY: system
system: $(VENV)/.installed ## tests on a whole Airflow: scheduler, API server, triggerer, kills
	$(BIN)/python -m pytest -m system $(PYTEST_ARGS)

.PHONY: browser
browser: $(VENV)/.installed-browser ## tests of the connection form in Chromium, which has to be there
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

# MATRIX=short leaves out the slow tests of what imports no Airflow; MATRIX_JOBS=n runs that many tests at once in each environment.
.PHONY: matrix
matrix: $(VENV)/.installed build ## the built wheel on each supported Airflow and Python
	$(BIN)/python -m pytest -m matrix $(PYTEST_ARGS)

.PHONY: chaos
# What it does without these settings is its short form; CHAOS_SEED=n runs one schedule again, CHAOS_SIMULATION_SEED=n one simulation.
chaos: export CHAOS_SCHEDULES ?= 400
chaos: export CHAOS_SYSTEM ?= 10
chaos: export CHAOS_PROMPTS ?= 20000
chaos: export CHAOS_SIMULATIONS ?= 3000
chaos: $(VENV)/.installed ## seeded random faults, kills and restarts
	$(BIN)/python -m pytest -m chaos -s $(PYTEST_ARGS)

.PHONY: celery
# What it does without this setting is its short form.
celery: export CELERY_CONVERSATIONS ?= 40
celery: $(VENV)/.installed-celery ## conversations on two Celery workers, one of them killed; PostgreSQL and Redis have to be installed
	$(BIN)/python -m pytest -m celery -s $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(VENV)/.installed ## how many mutants of the rule of a turn its unit tests notice; takes some minutes
	@rm -rf mutants
	$(BIN)/mutmut run --max-children $(JOBS)
	@$(BIN)/mutmut results

.PHONY: bench
bench: $(VENV)/.installed-bench ## benchmarks beside the peers
	@$(BIN)/python -W ignore -m tests.bench $(BENCH_ARGS)

.PHONY: build
build: $(VENV)/.installed ## wheel and sdist in dist/, their content checked
	@rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/check_dist.py dist
	$(BIN)/twine check --strict dist/*

.PHONY: docs
docs: $(VENV)/.installed-docs ## the documentation with an API reference, as a site in build/docs; warnings are errors
	$(BIN)/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going -d build/doctrees docs build/docs

.PHONY: constraints
constraints: $(VENV)/.installed ## the newest versions of everything into .ci/constraints.txt
	@head -n 2 .ci/constraints.txt > .ci/constraints.new
	@$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
		--no-emit-package airflow-provider-llamachat pyproject.toml >> .ci/constraints.new
	@mv .ci/constraints.new .ci/constraints.txt

.PHONY: clean
clean: ## remove everything that the commands above made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* mutants
