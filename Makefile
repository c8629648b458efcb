# Every target prepares .venv itself; .venv/bin/xensock exists after any of them.
# ARGS goes to the command of a target: make test ARGS="-k relay", make bench ARGS=--json.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
NATIVE := $(shell find native -type f) CMakeLists.txt pyproject.toml
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
ARGS ?=

.DEFAULT_GOAL := build
.PHONY: build demo xen test conformance lint native bench test-all clean

# Compiled here once, else each run compiles what it may not keep: another user's tree, PYTHONDONTWRITEBYTECODE.
build: $(STAMP)
	$(BIN)/python -m compileall -q src/xensock

$(VENV)/.deps: requirements.lock
	python=$$(tools/toolchain) && "$$python" -m venv --clear $(VENV)
	$(PIP) install --require-hashes -r requirements.lock
	touch $@

$(STAMP): $(VENV)/.deps $(NATIVE)
	tools/toolchain >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-deps --no-build-isolation -e .
	touch $@

demo: build
	$(BIN)/python tools/demo.py $(ARGS)

test: build
	tools/prepare
	tools/test $(ARGS)

# CPython's own network tests with our sockets, the slow ones too.
conformance: build
	tools/prepare
	tools/test tests/conformance --slow --durations=9 $(ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C core and its tests with warnings as errors: under ASan and UBSan, together with the explorers of the rings, then
# under TSan.
native: build
	tools/native build/checked address,undefined
	tools/native build/threads thread

# Real Xen domains under emulation. Root only; the bed takes some minutes to build and is kept in build/.
xen: build
	tools/xen-bed build/xen-bed
	XENSOCK_XEN_BED=$(CURDIR)/build/xen-bed $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/xen --slow $(ARGS)

bench: build
	tools/prepare
	$(BIN)/xensock bench run $(ARGS)

test-all: lint native test conformance xen

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools -name __pycache__ -type d -exec rm -rf {} +
