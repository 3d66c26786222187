# Every target sets up what it needs first (scripts/setup); a second run finds it there.

PORT ?= 8000
# More arguments for pytest or the benchmark: make test ARGS="-k resume"
ARGS ?=
# Processes for the tests, which wait more than they compute. 0: in this one,
# for -s and pdb.
JOBS ?= 5

VENV := .venv/bin
SETUP := @scripts/setup
# Node.js from the virtual environment where the machine has none.
export PATH := $(CURDIR)/$(VENV):$(PATH)
# The tests start Python a hundred times, and would compile everything each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check bench stress format build lock clean
.DEFAULT_GOAL := help

help: ## Show this list
	@printf 'Crossband. make <target>:\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## Serve the demo at http://127.0.0.1:8000 (make run PORT=9000)
	$(SETUP) run pages
	@exec $(VENV)/crossband demo --port $(PORT)

test: ## Run every test (make test ARGS="-k resume")
	$(SETUP) dev node client pages chromium nginx redis curl
	@JOBS=$(JOBS) scripts/test $(ARGS)

check: ## Lint and check types: ruff, mypy, pyright, tsc
	$(SETUP) dev node client
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --quiet --check . || { $(VENV)/ruff format --check . ; exit 1; }
	@$(VENV)/python scripts/typecheck.py
	@npm run check --silent
	@echo 'check: all is well'

bench: ## Measure against a floor in C and against peers (make bench ARGS=--quick)
	$(SETUP) dev node redis
	@$(VENV)/python -m benchmarks $(ARGS)

stress: ## Count what is lost while servers, nodes and links fail (make stress ARGS="kill link")
	$(SETUP) dev node nginx redis
	@$(VENV)/python -m stress $(ARGS)

format: ## Format the Python code and mend what ruff can
	$(SETUP) dev
	@$(VENV)/ruff check --fix --quiet .
	@$(VENV)/ruff format .

build: ## Build the sdist and the wheel into dist/
	$(SETUP) dev pages
	@$(VENV)/hatchling build

lock: ## Move every locked dependency to its newest version
	$(SETUP) dev node
	@scripts/lock

clean: ## Remove everything the targets made
	rm -rf .venv .setup.lock build dist node_modules src/crossband/pages
	rm -rf clients/*/dist clients/*/node_modules examples/*/node_modules pages/*/node_modules tests/*/node_modules
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
