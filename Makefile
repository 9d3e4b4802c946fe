# make demo    a virtual environment, the package, and the main job on real digits
# make test    the same set-up and the whole test suite
# make check   lint, formatting and types as CI runs them
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready

.PHONY: demo test check clean

demo: $(READY)
	$(RUN) -m tutelage demo

test: $(READY)
	$(RUN) -m pytest -n 2 --dist worksteal

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV)
