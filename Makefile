# Two commands for newcomers (demo, test) and the short scripts that people and CI share.
# A machine with Python 3.10 to 3.13 and make is enough.

PYTHON ?= python3
ONCE ?=

.PHONY: demo install test check bench docs clean

demo:
	PYTHON=$(PYTHON) scripts/install triton
	.venv/bin/tidemill demo --work_dir demo $(if $(ONCE),--once)

install:
	PYTHON=$(PYTHON) scripts/install dev

test:
	PYTHON=$(PYTHON) scripts/install test
	scripts/test

check:
	scripts/check

bench:
	scripts/bench

docs:
	scripts/docs

clean:
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
