# `make` lists the targets. Everything but Python 3.11+, a C++ compiler and make comes from the package index.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
UV := $(BIN)/uv
UV_VERSION := 0.13.9
# Options for pytest, and where its results go: make test PYTEST_FLAGS='-k wire'.
PYTEST_FLAGS ?=
RESULTS := build/results
PYTEST = $(PY) -Im pytest --junit-xml=$(RESULTS)/$@.xml $(PYTEST_FLAGS)

NATIVE_SOURCES := CMakeLists.txt $(shell find native/src native/include -name '*.cc' -o -name '*.h')
# Whatever runs C++ in several ways; the rest would only be slower.
SANITIZED_TESTS := $(wildcard tests/unit/test_native*.py tests/unit/test_local_table.py tests/unit/test_shows.py tests/integration/test_client_*.py tests/fuzz/test_fuzz.py)
# Those of them in which threads meet: their own, or a server's.
THREADED_TESTS = $(sort $(shell grep -lE "threading|use_processors" $(SANITIZED_TESTS)) $(wildcard tests/integration/test_client_*.py))
CXX_SOURCES := $(shell find native bench -name '*.cc' -o -name '*.h')

export UV_NO_PROGRESS := 1
unexport PYTHONPATH VIRTUAL_ENV

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- set-up: each step leaves a stamp, so that a second call takes no time

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Tablebay needs Python 3.11 or later, found " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.made pyproject.toml constraints.txt
	$(UV) pip install --quiet --python $(PY) --constraint constraints.txt --requirement pyproject.toml --group build
	@touch $@

$(VENV)/.dev: $(VENV)/.dependencies
	$(UV) pip install --quiet --python $(PY) --constraint constraints.txt --requirement pyproject.toml --extra operator --extra parquet --group dev
	@touch $@

# Python files are used where they lie; only a change of C++ or of the packaging comes here. The build folder stays,
# so that only what changed is compiled.
# A new commit compiles the one file that says which commit it is.
$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE_SOURCES) client/package/__init__.py $(wildcard .git/logs/HEAD)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(UV) pip install --quiet --python $(PY) --no-build-isolation --no-deps --reinstall-package tablebay --editable .
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev $(VENV)/.installed ## make .venv with all that developing needs, and build the native core into it

# ---- use

.PHONY: demo
demo: ## train on 327,346 flights: 2 servers, 2 workers; report in build/demo
	@rm -f build/demo/report.json
	@$(MAKE) --no-print-directory $(VENV)/.installed
	$(BIN)/tablebay run examples/flights/job.yaml --run-dir build/demo

# ---- checks

# The folders as they install, as links: for tools that do not follow an editable install.
define make_tree
	rm -rf $(1)
	mkdir -p $(1)/tablebay/operator
	ln -s $(CURDIR)/{client,examples,native,ps_server} $(1)/tablebay/
	ln -s $(CURDIR)/client/package/{__init__.py,py.typed} $(1)/tablebay/
	ln -s $(CURDIR)/operator/*.py $(1)/tablebay/operator/
	touch $(1)/tablebay/operator/__init__.py
endef
SITE = $$($(1) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

build/tree/.made: Makefile $(wildcard operator/*.py)
	$(call make_tree,build/tree)
	@touch $@

.PHONY: lint
lint: setup build/tree/.made ## ruff, mypy --strict, import-linter, clang-format
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy
	PYTHONPATH="build/tree:$(call SITE,$(PY))" $(PY) -S $(BIN)/lint-imports --no-cache

.PHONY: format
format: setup ## write the files as lint wants them
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format --quiet
	$(BIN)/clang-format -i $(CXX_SOURCES)

.PHONY: test
test: lint ## lint, and every test that takes no long time; three at a time
	$(PYTEST) -n 3 --dist loadfile

# Half a minute and 5 GB, which only tb.torch needs.
$(VENV)/.torch: $(VENV)/.dev
	$(UV) pip install --quiet --python $(PY) --constraint constraints.txt --requirement pyproject.toml --extra torch
	@touch $@

.PHONY: test-torch
test-torch: setup $(VENV)/.torch ## install PyTorch into .venv, and the tests of tb.torch
	$(PYTEST) -n 2 --dist loadfile -m torch tests/pytorch

LOWEST_TORCH := $(shell sed -n 's/^torch = \["torch>=\(.*\)"\]/\1/p' pyproject.toml)
LOWEST := build/lowest-torch/bin/python

.PHONY: test-torch-lowest
test-torch-lowest: setup ## the same beside the lowest PyTorch that pyproject.toml allows: 5 GB under build/
	$(UV) venv --quiet --clear build/lowest-torch
	$(UV) pip install --quiet --python $(LOWEST) --requirement pyproject.toml --group dev --extra operator --extra parquet torch==$(LOWEST_TORCH) .
	$(LOWEST) -Im pytest --junit-xml=$(RESULTS)/$@.xml $(PYTEST_FLAGS) -m torch tests/pytorch

.PHONY: test-gpu
test-gpu: setup $(VENV)/.torch ## DLRM on a CUDA device beside the CPU, and what the device did; says so where none is
	$(PY) -I tests/pytorch/gpu.py

.PHONY: test-deep
test-deep: setup test-long sanitize ## all seeds, wheel, lowest dependencies, sanitizers

.PHONY: test-long
test-long: setup
	TABLEBAY_DEEP=1 $(PYTEST) -n 2 --dist loadfile -m "deep and not e2e"

.PHONY: test-lower-bounds
test-lower-bounds: setup ## the wheel beside the lowest dependencies that pyproject.toml allows
	TABLEBAY_DEEP=1 $(PYTEST) -m deep tests/unit/test_packaging_wheel.py -k lowest

# A virtual environment of its own, in which `tablebay` is a folder of links and a core built otherwise.
define make_core
	$(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" $(2) \
	  -DSKBUILD_PROJECT_VERSION="$$($(PY) -c 'import tablebay; print(tablebay.__version__)')" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(PY)" -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)" >/dev/null
	$(BIN)/cmake --build $(1)
	$(call make_tree,$(1)/tree)
	rm $(1)/tree/tablebay/native
	mkdir $(1)/tree/tablebay/native
	ln -s $(CURDIR)/native/*.py* $(1)/tree/tablebay/native/
	cp $(1)/_core.*.so $(1)/tree/tablebay/native/
	rm -rf $(1)/venv
	$(UV) venv --quiet --python $(PY) $(1)/venv
	printf '%s\n' "$(CURDIR)/$(1)/tree" "$(call SITE,$(PY))" > "$(call SITE,$(1)/venv/bin/python)/tablebay.pth"
endef

.PHONY: test-failpoints
test-failpoints: setup ## servers killed at places that only a core built for it has
	$(call make_core,build/$@,-DTABLEBAY_FAILPOINTS=ON)
	build/$@/venv/bin/python -Im pytest --junit-xml=$(RESULTS)/$@.xml -m failpoints $(PYTEST_FLAGS) tests/faults/test_failpoints.py

.PHONY: sanitize
sanitize: sanitize-address sanitize-thread ## the tests of the native core under address, undefined and thread sanitizers

# The preloaded C++ library lets the sanitizer see exceptions; Python itself leaks on purpose. The thread sanitizer
# makes a fork of every start of a process, and gRPC's handlers of forks would start threads in the child. Its
# search for deadlocks breaks off where a thread holds more than 64 locks, as one that cuts does.
.PHONY: sanitize-address sanitize-thread
sanitize-address: KIND := address,undefined
sanitize-address: export TABLEBAY_FUZZ := 3000
sanitize-address: PRELOAD := libasan.so libubsan.so libstdc++.so
sanitize-address: TESTS = $(SANITIZED_TESTS)
sanitize-thread: KIND := thread
sanitize-thread: TESTS = $(THREADED_TESTS)
sanitize-thread: PRELOAD := libtsan.so libstdc++.so
# A forked child of a process with threads may do nothing in the thread sanitizer's eyes, not even raise.
sanitize-thread: SELECT := -k "not forked_child"
sanitize-address sanitize-thread: setup
	$(call make_core,build/$@,-DTABLEBAY_SANITIZE=$(KIND))
	LD_PRELOAD="$$(for name in $(PRELOAD); do $${CXX:-g++} -print-file-name=$$name; done | tr '\n' ' ')" \
	  GRPC_ENABLE_FORK_SUPPORT=false ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:detect_deadlocks=0:report_signal_unsafe=0:suppressions=$(CURDIR)/native/thread_sanitizer.txt \
	  build/$@/venv/bin/python -Im pytest --junit-xml=$(RESULTS)/$@.xml --capture=sys -m "not deep" -n 2 --dist loadfile $(SELECT) $(PYTEST_FLAGS) $(TESTS)

.PHONY: test-mutants
test-mutants: setup ## break the product in one place after the other: a test must fail each time
	$(PY) tests/mutants/run.py --junit-xml=$(RESULTS)/$@.xml $(if $(ONLY),--only "$(ONLY)")

.PHONY: fuzz
fuzz: setup ## changed bytes for all that reads the wire and files: make fuzz SECONDS=60 SEED=1 TARGET=manifest
	$(PY) tests/fuzz/run.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1) $(addprefix --target ,$(TARGET))

.PHONY: e2e
e2e: setup ## the tests on a real Kubernetes: our own (needs root), or KUBECONFIG=... LOAD='kind load docker-image'
	CHOICE="not deep" tests/e2e/run $(PYTEST_FLAGS)

.PHONY: e2e-all
e2e-all: setup ## those, and the ones that take longer
	tests/e2e/run $(PYTEST_FLAGS)

# ---- figures

.PHONY: bench
bench: setup ## the benchmarks, written to build/bench.json: make bench ONLY=table,grpc
	$(PY) bench/run.py $(if $(ONLY),--only $(ONLY))

# ---- generated files

.PHONY: proto
proto: $(VENV)/.dev ## write client/proto/tablebay_pb2*.py from tablebay.proto
	$(PY) client/proto/generate.py

.PHONY: stubs
stubs: setup ## write native/_core.pyi from the built core
	$(PY) native/stubs.py

.PHONY: crd
crd: setup ## write the chart's CRD from the job file's model
	mkdir -p deploy/helm/tablebay/files
	$(PY) -I -m tablebay.client.schema > deploy/helm/tablebay/files/trainingjobs.yaml

.PHONY: constraints
constraints: $(VENV)/.made ## write constraints.txt: the newest versions that pyproject.toml allows
	$(UV) pip compile --quiet --upgrade pyproject.toml --extra operator --extra parquet --extra torch --group dev --universal --python-version 3.11 \
	  --no-annotate --no-header --output-file constraints.txt

# ---- what is shipped

.PHONY: wheel
wheel: setup ## a manylinux wheel in dist/
	rm -rf build/wheelhouse dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(UV) build --quiet --wheel --no-build-isolation --python $(PY) --out-dir build/wheelhouse .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PY) -m auditwheel repair --only-plat --wheel-dir dist build/wheelhouse/*.whl
	@ls dist/*.whl

.PHONY: image
image: ## the container image (needs docker): make image IMAGE=name:tag BASE=python:3.12-slim
	docker build --tag $(or $(IMAGE),localhost/tablebay:dev) $(if $(BASE),--build-arg BASE=$(BASE)) .

.PHONY: chart
chart: $(VENV)/.dependencies ## check the Helm chart and pack it into dist/ (needs helm): make chart HELM=path
	HELM="$(or $(HELM),helm)" $(PY) tests/e2e/chart/check.py
	$(or $(HELM),helm) package --destination dist deploy/helm/tablebay

.PHONY: clean
clean: ## remove .venv and all that was built
	rm -rf .venv build dist .tablebay .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
