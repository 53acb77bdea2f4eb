# Everything sets itself up in a local .venv: Python 3.11 or later, make and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' common/cortex_common/__init__.py)
# Built twice from one commit, wheel, sdist and packages are the same bytes: their dates are the commit's.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1)

# Python versions that the source package carries wheels for: Fedora 43 and 44 have 3.14, Fedora 45 has 3.15.
RPM_PYTHONS ?= 3.14 3.15
# Where it is not Fedora's rpm that builds, its macros are ours.
RPM_MACROS := $(if $(wildcard /usr/lib/rpm/macros.d/macros.systemd),,--load $(CURDIR)/rpm/debian.macros --nodeps)
RPM_BUILD := $(CURDIR)/build/rpm
RPMBUILD = rpmbuild $(RPM_MACROS) --define '_topdir $(RPM_BUILD)' --define '_sourcedir $(CURDIR)/dist' \
	--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
	--define '_buildhost localhost'

.PHONY: help demo test check format bench engines docs docs-serve reference dist lock srpm rpm test-rpm rehearse clean

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

# More at a time than cores, since most tests wait for processes. Without bytecode on disk each of those would
# compile cortex anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(READY) ## All tests that CI runs
	$(BIN)/pytest -n 6 --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(READY) ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure the data plane against other gateways (more in tests/bench)
	$(BIN)/python -m tests.bench $(ARGS)

engines: $(READY) ## Build a real llama-server outside the checkout, for the tests marked llama; ARGS=mistralrs the other
	PYTHONPATH=tests $(BIN)/python -m engines.build_$(or $(ARGS),llama)

.venv/.docs: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: .venv/.docs ## Build the documentation's site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-serve: .venv/.docs ## Serve the documentation on http://127.0.0.1:8001 while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(READY) ## Write the generated pages of docs/reference and the schemas in config anew
	cd docs && ../$(BIN)/python -m generator

dist: $(READY) ## Build wheel and sdist into dist/
	rm -f dist/cortex_gpu-*
	$(BIN)/hatchling build -d dist

lock: $(READY) ## Choose anew which versions the packages carry (rpm/*.lock)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python rpm/lock.py

srpm: dist ## Build the source package for Fedora (and COPR)
	$(BIN)/python rpm/wheelhouse.py dist/cortex-wheelhouse-$(VERSION).tar $(RPM_PYTHONS)
	$(RPMBUILD) -bs rpm/cortex.spec

rpm: rpm-tools dist ## Build the packages for this host: cortex, neuron, neuron-engine-embedded
	$(BIN)/python rpm/wheelhouse.py dist/cortex-wheelhouse-$(VERSION).tar \
	  $$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	$(RPMBUILD) -ba rpm/cortex.spec

.PHONY: rpm-tools
rpm-tools:
	@command -v rpmbuild >/dev/null || { echo 'make rpm needs rpmbuild: apt-get install --no-install-recommends rpm' \
	  '(on Fedora: dnf install rpm-build python3-devel systemd-rpm-macros firewalld-filesystem)' >&2; exit 1; }
	@/usr/bin/python3 -c 'import sys; sys.exit("the packages need Python 3.11 or later as /usr/bin/python3" if sys.version_info < (3, 11) else 0)'

test-rpm: rpm ## Lint the packages, unpack them, and run what is in them
	CORTEX_PACKAGES=1 $(BIN)/pytest tests/rpm $(ARGS)

rehearse: ## Install, run and upgrade the packages on a host that boots here; needs root and debootstrap, `make srpm` first
	tests/rpm/rehearse.sh

clean: ## Remove what make made here
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
