# All targets set up a local .venv; Python 3.11 or later, make and a package index are required.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' common/cortex_common/__init__.py)
# Reproducible builds: wheel, sdist and packages use the date of the commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1)

# Python versions for which the source package contains wheels: Fedora 43 and 44 have 3.14, Fedora 45 has 3.15.
RPM_PYTHONS ?= 3.14 3.15
# On other distributions than Fedora, rpm/debian.macros provides Fedora's macros.
RPM_MACROS := $(if $(wildcard /usr/lib/rpm/macros.d/macros.systemd),,--load $(CURDIR)/rpm/debian.macros --nodeps)
RPM_BUILD := $(CURDIR)/build/rpm
RPMBUILD = rpmbuild $(RPM_MACROS) --define '_topdir $(RPM_BUILD)' --define '_sourcedir $(CURDIR)/dist' \
	--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
	--define '_buildhost localhost'

.PHONY: help demo test test-oldest check format bench engines docs docs-serve reference dist lock srpm rpm test-rpm rehearse clean

help: ## List all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("cortex needs Python 3.11 or later, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@

demo: $(READY) ## Run a complete fleet on this host with a real engine; ARGS=--once stops after the first response
	@$(BIN)/cortex demo $(ARGS)

check: $(READY) ## Run the linter, the type checker and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# More workers than cores, because most tests wait for processes. Bytecode is cached on disk, because otherwise each of
# these processes would compile cortex again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) ## Run the tests (CI also runs test-oldest and test-rpm)
	$(BIN)/pytest -n 6 --dist loadfile --no-loadscope-reorder $(ARGS)

test-oldest: $(READY) ## Run the tests of HTTP, settings and storage with the oldest dependencies that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python .venv-oldest/bin/python \
		--extra gateway --extra neuron --extra tui --output-file .venv-oldest/oldest.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --constraint .venv-oldest/oldest.txt \
		--editable '.[gateway,neuron,tui]' --group test gguf
	.venv-oldest/bin/python -m pytest -n 4 --dist loadfile -p no:cacheprovider tests/unit/cortex_common \
		tests/unit/cortex_http tests/unit/cortex_server/auth tests/unit/cortex_server/storage \
		tests/integration/test_neuron_relay_edges.py tests/integration/test_hostile_inputs.py $(ARGS)

format: $(READY) ## Format the code and fix lint errors automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Benchmark the proxy against other gateways (see tests/bench for more)
	$(BIN)/python -m tests.bench $(ARGS)

engines: $(READY) ## Build llama-server outside the checkout for tests marked llama; ARGS=mistralrs, ARGS=xllamacpp for others
	PYTHONPATH=tests $(BIN)/python -m engines.build_$(or $(ARGS),llama)

.venv/.docs: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: .venv/.docs ## Build the documentation site into build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-serve: .venv/.docs ## Serve the documentation on http://127.0.0.1:8001 with live reload
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(READY) ## Regenerate docs/reference and the JSON schemas in config
	cd docs && ../$(BIN)/python -m generator

dist: $(READY) ## Build wheel and sdist into dist/
	rm -f dist/cortex_gpu-*
	$(BIN)/hatchling build -d dist

lock: $(READY) ## Update the dependency versions of the packages (rpm/*.lock)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python rpm/lock.py

srpm: dist ## Build the source package for Fedora and COPR
	$(BIN)/python rpm/wheelhouse.py dist/cortex-wheelhouse-$(VERSION).tar $(RPM_PYTHONS)
	$(RPMBUILD) -bs rpm/cortex.spec

rpm: rpm-tools dist ## Build the packages cortex, neuron and neuron-engine-embedded for this host
	$(BIN)/python rpm/wheelhouse.py dist/cortex-wheelhouse-$(VERSION).tar \
	  $$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	$(RPMBUILD) -ba rpm/cortex.spec

.PHONY: rpm-tools
rpm-tools:
	@command -v rpmbuild >/dev/null || { echo 'make rpm needs rpmbuild: apt-get install --no-install-recommends rpm' \
	  '(on Fedora: dnf install rpm-build python3-devel systemd-rpm-macros firewalld-filesystem)' >&2; exit 1; }
	@/usr/bin/python3 -c 'import sys; sys.exit("the packages need Python 3.11 or later as /usr/bin/python3" if sys.version_info < (3, 11) else 0)'

test-rpm: rpm ## Lint and unpack the packages, and run their programs
	CORTEX_PACKAGES=1 $(BIN)/pytest tests/rpm $(ARGS)

rehearse: ## Install, run and upgrade the packages on a booted host; needs root, debootstrap and `make srpm` first
	tests/rpm/rehearse.sh

clean: ## Remove everything that make created
	rm -rf build dist .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
