# For contributors. `./model test` needs none of this.
.PHONY: check lint test test-core coverage latest lock long schemas structure

PYTHON := .venv/bin/python
UV := uv
FLOOR := 96
PURE := swapd.domain,swapd.scheduler,swapd.store,swapd.config
# The pure parts, without the searches: no processes, no sockets, no model files.
CORE := tests/scheduler tests/store tests/domain tests/config tests/proxy/test_sse.py \
	tests/workers/grammar/test_json_schema.py tests/workers/chat/test_output_parser.py \
	tests/workers/engine/test_batch_scheduler.py tests/workers/engine/test_fair_queue.py \
	tests/test_import_contracts.py tests/test_language.py \
	--ignore=tests/config/test_fuzz.py --ignore=tests/config/test_properties.py \
	--ignore=tests/scheduler/test_planted_faults.py

check: lint test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	./model test

# Half a minute: after every edit.
test-core:
	$(PYTHON) -m pytest -n auto --dist worksteal -m "not slow" $(CORE)

long:
	./model test --long

# The share of lines and branches of the pure packages that test-core covers may not fall.
coverage:
	$(PYTHON) -m coverage run --source=$(PURE) -m pytest -n 0 -m "not slow" $(CORE)
	$(PYTHON) -m coverage report --fail-under=$(FLOOR)

# The newest versions that pyproject.toml allows, in a clone of its own.
latest:
	rm -rf build/latest
	git clone -q . build/latest
	cd build/latest && SWAPD_LOCKED=0 ./model test

# Lock the versions that ./model and CI install; for every supported Python and platform.
lock:
	$(UV) pip compile -q --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --extra test pyproject.toml -o requirements/test.txt
	$(UV) pip compile -q --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" -c requirements/test.txt pyproject.toml \
		-o requirements/base.txt
	$(UV) pip compile -q --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make lock" -c requirements/test.txt requirements/build.in \
		-o requirements/build.txt

schemas:
	$(PYTHON) -c 'from pathlib import Path; from swapd.config.editor_schema import write_schemas as w; w(Path())'
	$(PYTHON) -m workers.api.describe >swapd/http/worker_requests.json

structure:
	$(PYTHON) -m tools.structure
