# For those who work on swapd. `./model test` needs none of this.
.PHONY: check lint test long schemas

PYTHON := .venv/bin/python

check: lint test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	./model test

long:
	./model test --long

schemas:
	$(PYTHON) -c 'from pathlib import Path; from swapd.config.editor_schema import write_schemas as w; w(Path())'
	$(PYTHON) -m workers.api.describe >swapd/http/worker_requests.json
