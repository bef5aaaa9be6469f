# Each target makes what it lacks: a fresh clone needs nothing but Python, and says so if that will not do.
PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/complete
# Many tests wait, for locks and servers, and little is computed: three at once, each with a server of its own.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile
# Migrations that run outside a transaction.
CONCURRENT := $(filter-out %.rollback.sql,$(wildcard migrations/*.index-*.sql))

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint bench snapshot clean debian-packages

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)  ## Show guard at work, from nothing to a repaired booking
	$(BIN)/python -m examples.demo

test: $(VENV) debian-packages  ## Run all tests
	$(PYTEST)

test-fast: $(VENV) debian-packages  ## Run the tests but for the slow ones (servers, crashes, adoption)
	$(PYTEST) -m "not slow"

lint: $(VENV)  ## Check style, types and SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint $(wildcard migrations sql pgtests bench examples)
	$(BIN)/squawk --assume-in-transaction $(filter-out $(CONCURRENT) %.rollback.sql,$(wildcard migrations/*.sql))
	$(BIN)/squawk $(CONCURRENT)

bench: $(VENV) debian-packages  ## Measure what guard costs, as ratios
	$(BIN)/python -m bench

snapshot: $(VENV) debian-packages  ## Regenerate the committed snapshots, whose diff is reviewed
	GUARD_SNAPSHOT=write $(BIN)/pytest tests/test_snapshot.py

clean:  ## Remove what the other targets made
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

debian-packages:
	@tools/debian-packages

$(VENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "guard needs Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$(PYTHON) cannot make a .venv; on Debian, as root: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv ..."
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --constraint constraints.txt hatchling editables
	@$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@
