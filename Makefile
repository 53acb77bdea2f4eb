# Everything sets itself up in a local .venv: Python 3.11 or later, make and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.PHONY: help demo test check format bench engines docs docs-serve reference clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("cortex needs Python 3.11 or later, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@

demo: $(READY) ## Run a whole fleet on this host with a real engine; ARGS=--once ends after the first answer
	@$(BIN)/cortex demo $(ARGS)

check: $(READY) ## Lint, types and the architecture's contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without bytecode on disk each of the tests' many processes would compile cortex anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) ## All tests that CI runs
	$(BIN)/pytest -n 3 --dist loadfile $(ARGS)

format: $(READY) ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure the data plane against other gateways (more in tests/bench)
	$(BIN)/python -m tests.bench $(ARGS)

engines: $(READY) ## Build a real llama-server outside the checkout, for the tests marked llama
	$(BIN)/python tests/engines/build_llama.py

.venv/.docs: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: .venv/.docs ## Build the documentation's site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-serve: .venv/.docs ## Serve the documentation on http://127.0.0.1:8001 while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(READY) ## Write the generated pages of docs/reference and the schemas in config anew
	cd docs && ../$(BIN)/python -m generator

clean: ## Remove what make made here
	rm -rf .venv build/site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
