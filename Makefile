# Every target prepares .venv itself; see CONTRIBUTING.md.
PY := $(shell for p in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
STAMP := $(VENV)/.stamp
NATIVE := $(shell find native -type f) CMakeLists.txt pyproject.toml

.PHONY: build
build: $(STAMP)

$(VENV)/.deps: requirements.lock
	$(PY) -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(STAMP): $(VENV)/.deps $(NATIVE)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
