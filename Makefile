# make demo    a virtual environment, the package, and the main job on real digits
# make test    the same set-up and the whole test suite
# make test-all  as test, with every method on every pair of networks and under every option
# make check   lint, formatting and types, as CI runs them
# make docs    the documentation site, in site/
# make dist    wheel and sdist, in dist/, their content checked
# make smoke   both installed into bare virtual environments, and tried there
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all check docs dist smoke clean

demo: $(VENV)/installed
	$(RUN) -m tutelage demo

test: $(VENV)/installed-dev
	$(RUN) -m pytest --numprocesses 2 --dist worksteal

test-all: $(VENV)/installed-dev
	$(RUN) -m pytest --numprocesses 2 --dist worksteal -m "full or not full"

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "open site/index.html, or with search: $(RUN) -m http.server --directory site"

dist: $(VENV)/installed-dev
	rm -rf dist
	$(RUN) -m build --outdir dist
	$(RUN) release/check.py dist

smoke: dist
	$(RUN) release/install.py dist

# torch goes first and by its exact version: that is the small CPU build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a minute or two"
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
