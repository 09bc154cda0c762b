# The interpreter that .venv is made with. Where none is asked for, a .venv that is there stays.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
endif
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3.11 after a target picks the interpreter (3.10 to 3.12).'

env: ## create, complete or repair .venv (10 to 25 minutes when new, nothing when complete)
	@command -v '$(PYTHON)' > /dev/null || { \
	    echo 'set-up: no interpreter $(PYTHON); name another, e.g. make env PYTHON=python3.11' >&2; exit 1; }
	@'$(PYTHON)' tools/setup_env.py

demo: env ## train a small detector on generated pictures, fold it, show what it sees
	$(RUN) tools/demo.py

test: lint ## lint, formatting and the fast tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q --durations=10 -n auto --dist loadscope

test-slow: env ## the tests that train for minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q --durations=10 -m slow

lint: env ## lint and formatting
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

format: env ## rewrite what lint can repair by itself
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

clean: ## remove work_dirs, builds and caches; .venv and the compiled mmcv stay
	rm -rf work_dirs build dist *.egg-info .pytest_cache .ruff_cache
	find mmgnv3 configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
