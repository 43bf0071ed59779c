# Everything starts from a bare clone: each target makes .venv and installs what it needs before it works.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
# One thread per process: two test processes with two threads each would fight over two cores.
QUIET := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
JOBS ?= 2
PYTEST = $(QUIET) $(PY) -m pytest
TARGETS := demo test soak lint format bench builtin clean

.PHONY: help $(TARGETS)

help:
	@echo "make demo    install, train a small tower on built-in pictures, compare it with an untrained one"
	@echo "make test    install, then every test (ARGS='-k name' for some, JOBS=1 for one process)"
	@echo "make lint    ruff check, ruff format --check, mypy"
	@echo "make format  let ruff rewrite the files"
	@echo "make bench   measure speed: a table, and build/bench.json"
	@echo "make soak    the long tests: hours"
	@echo "make builtin train the tower in the box again and put it into the package: an hour"
	@echo "make clean   remove build products (not .venv, not runs)"

demo: $(VENV)/.installed
	$(VENV)/bin/dino-tower demo $(ARGS)

test: $(VENV)/.installed-dev chromium
	$(PYTEST) -n $(JOBS) $(ARGS)

soak: $(VENV)/.installed-dev chromium
	$(PYTEST) -o 'python_files=soak_*.py' -o timeout=0 -s $(ARGS)

lint: $(VENV)/.installed-dev types-tree
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	cd build/types && ../../$(VENV)/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p dino_tower

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.installed-dev
	$(PY) tests/benchmarks/run.py $(ARGS)

builtin: $(VENV)/.installed-dev
	$(VENV)/bin/dino-tower pretrain --preset builtin_scenes --data scenes --output runs/builtin_scenes --resume auto
	$(PY) tests/setup/builtin.py runs/builtin_scenes

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# ---- what the targets above stand on -------------------------------------------------------------------------------
$(PY):
	@tests/setup/venv.sh $(VENV)

# The stamps are older than pyproject.toml when a dependency changed: pip then looks again.
$(VENV)/.installed: pyproject.toml | $(PY)
	@echo "dino-tower: installing (PyTorch is large: this can take some minutes)"
	$(PY) -m pip install --disable-pip-version-check -q -e .
	@touch $@
	@echo "dino-tower: installation finished"

$(VENV)/.installed-dev: pyproject.toml | $(PY)
	@echo "dino-tower: installing with test and lint tools (PyTorch is large: this can take some minutes)"
	$(PY) -m pip install --disable-pip-version-check -q -e '.[test,dev]'
	@touch $@ $(VENV)/.installed
	@echo "dino-tower: installation finished"

.PHONY: chromium types-tree
chromium:
	@tests/setup/chromium.sh

# A checkout keeps the rooms beside dino_tower/, a wheel inside it; mypy follows neither the editable install nor
# __path__, so it is shown the wheel's layout made of links.
types-tree:
	@rm -rf build/types && mkdir -p build/types/dino_tower
	@ln -s "$(CURDIR)"/dino_tower/* build/types/dino_tower/
	@for room in pretrain adapters eval; do ln -s "$(CURDIR)/$$room" build/types/dino_tower/$$room; done
