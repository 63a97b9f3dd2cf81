# Everything a fresh machine needs: `make demo` and `make test` build the environment by themselves.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo gallery test test-all check lint types bench tables clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[cpu,huge,train,dev,bench]'
	touch $@

demo: $(STAMP)
	$(PY) examples/demo.py

gallery: $(STAMP)
	$(PY) examples/gallery.py

# One test process a core, each of one thread: faster than one process of many threads.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# Lint, types and the fast tests: what to run before every commit.
check: lint
	$(PYTEST) -m "not slow and not thorough" -q

lint: $(STAMP) types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# mypy does not follow an editable install's import hook, so it reads a tree of links laid out as installed.
types: $(STAMP)
	rm -rf build/types && mkdir -p build/types/tilefuse
	cp -rs $(CURDIR)/engine/. build/types/tilefuse
	cp -rs $(CURDIR)/kernels $(CURDIR)/export build/types/tilefuse
	MYPYPATH=build/types $(PY) -m mypy -p tilefuse

# Minutes on a quiet machine: records under benchmarks/results/, the README's tables and the plots in docs/.
bench: $(STAMP)
	$(PY) -m benchmarks.numbers
	$(PY) -m pytest benchmarks -o python_files='bench_*.py' -o python_functions='bench_*' -o timeout=3600 -p no:xdist -q
	$(PY) -m benchmarks.tables
	$(PY) -m benchmarks.plots

# The README's GPU table, from the records under benchmarks/results/ (without one it says that there is none), and what
# the bundled weights' headers say of their quality.
tables: $(STAMP)
	$(PY) -m benchmarks.gpu_table
	$(PY) -m benchmarks.evaluation

clean:
	rm -rf build out .venv
