# `make demo` and `make test` do everything from a bare machine with Python >= 3.11.
PYTHON ?= python3
FLAGS ?=

.PHONY: demo test test-fast campaign tutorials docs lint types wheel check clean

demo: .venv/demo.installed  ## learn real digits, generate, inpaint and measure them; results in runs/demo
	.venv/bin/unmask demo $(FLAGS)

test: .venv/dev.installed  ## the whole test suite
	.venv/bin/pytest $(FLAGS)

test-fast: .venv/dev.installed  ## the tests that take under 5 seconds each
	.venv/bin/pytest -m "not slow" $(FLAGS)

campaign: .venv/dev.installed  ## attack the commands, write docs/results/reliability.md; CAMPAIGN=quick tries a few of each
	.venv/bin/python tests/campaign/run.py $(if $(CAMPAIGN),--$(CAMPAIGN)) $(FLAGS)

tutorials: build/tutorials/done  ## run the tutorials of docs/tutorials; Markdown, pictures and notebooks in build/tutorials

build/tutorials/done: docs/tutorials/run.py $(wildcard docs/tutorials/*.md) $(shell find src -name '*.py') | .venv/docs.installed
	.venv/bin/python docs/tutorials/run.py build/tutorials
	@touch $@

docs: .venv/docs.installed tutorials  ## the documentation site in build/site, built offline; a warning fails
	.venv/bin/python docs/site/build.py build

lint: .venv/dev.installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: .venv/dev.installed
	.venv/bin/mypy

wheel: .venv/dev.installed  ## build the package into dist/, and run a short demo from the wheel in an empty environment
	rm -rf dist
	.venv/bin/python -m build
	PYTHON=$(PYTHON) tests/release/try_wheel.sh

check: lint types test  ## what CI runs, but for the demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/%.installed: pyproject.toml constraints.txt | .venv/bin/python
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt -e ".[$*]"
	@touch $@

clean:
	rm -rf .venv dist build runs/demo
