# `make check` is what a change must pass beside the tests; `make -k check` shows everything that is wrong. `make test` runs the tests.
# Tools come from the environment of $(PYTHON): .venv where there is one, else whatever `python` is.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python)

.PHONY: check lint formatted types layers format test

check: lint formatted types layers

lint:
	$(PYTHON) -m ruff check

formatted:
	$(PYTHON) -m ruff format --check

types:
	$(PYTHON) -m basedpyright --pythonpath $(PYTHON)

layers:
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as run; run()" --no-logo

format:
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test:
	$(PYTHON) -m pytest -n 2
