# make roberta   pre-train a small RoBERTa on two workers, kill one, and watch it go on
# make test      run the tests
# make check     lint, format and types
# make bench     measure what faults cost, side by side with others (about 1 hour, on a quiet machine)
# make matrix    train every task of fairseq over kills, and write docs/compatibility.md (about 1 hour)
# make clean     remove everything that the other targets made, .venv included
#
# Whichever comes first makes .venv with the versions in constraints.txt; an interrupted set-up
# goes on where it was. torch comes as pip finds it, for Linux with CUDA. Without a GPU, a smaller
# download:  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make roberta

PYTHON ?= python3.11
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# A stamp is written only when its step has succeeded.
STAMPS := $(VENV)/stamps
# Pins what is needed to build fairseq, too. pip is told twice to be quiet, because fairseq's
# own pins make it warn at every install; errors still show.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip install -q -q

.PHONY: roberta test check bench matrix clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

roberta: $(STAMPS)/example
	@$(BIN)/python examples/roberta/demo.py

test: $(STAMPS)/test
	@$(BIN)/python -m pytest tests $(PYTEST_ARGS)

check: $(STAMPS)/check
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(STAMPS)/bench
	@rm -f benchmarks/results.jsonl
	@$(BIN)/python benchmarks/faults.py
	@$(BIN)/python benchmarks/update_cost.py
	@$(BIN)/python benchmarks/same_training.py

matrix: $(STAMPS)/matrix
	@rm -f benchmarks/matrix.jsonl
	@$(BIN)/python benchmarks/matrix.py

clean:
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "make: no Python 3.11 found as '$(PYTHON)': install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: python3.11-venv)" >&2; exit 1; }
	@echo "Setting up .venv: $(PYTHON) (a few seconds) ..."
	@$(PYTHON) -m venv $(VENV)
	@# pip 24.1 and later refuse the metadata of omegaconf 2.0.6, which fairseq pins.
	@$(INSTALL) 'pip<24.1'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: constraints.txt | $(STAMPS)/venv
	@$(drop-half-installed)
	@echo "Setting up .venv: torch (about 1 minute) ..."
	@$(INSTALL) torch
	@touch $@

# The example needs no test packages and the tests need the example, so the two add up.
$(STAMPS)/example: setup.cfg pyproject.toml $(STAMPS)/torch
	@$(require-compiler)
	@$(drop-half-installed)
	@echo "Setting up .venv: fairseq, Ray and this package (1 to 2 minutes) ..."
	@$(INSTALL) -e '.[example]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/example
	@$(drop-half-installed)
	@echo "Setting up .venv: test packages (less than 1 minute) ..."
	@$(INSTALL) -e '.[aws,example,test]'
	@touch $@

# The benchmarks use what the tests use to start runs and nodes.
$(STAMPS)/bench: $(STAMPS)/test
	@$(drop-half-installed)
	@echo "Setting up .venv: benchmark packages (less than 1 minute) ..."
	@$(INSTALL) -e '.[aws,bench,example,test]'
	@touch $@

$(STAMPS)/matrix: $(STAMPS)/test
	@$(drop-half-installed)
	@echo "Setting up .venv: packages of the matrix (a few seconds) ..."
	@$(INSTALL) -e '.[aws,example,matrix,test]'
	@touch $@

# Not `-e .[dev]`: lint and types need neither torch nor fairseq.
$(STAMPS)/check: constraints.txt | $(STAMPS)/venv
	@$(drop-half-installed)
	@echo "Setting up .venv: ruff and mypy (a few seconds) ..."
	@$(INSTALL) ruff mypy
	@touch $@

# A pip that was interrupted can leave a package that looks installed and is not: pip writes a
# package's RECORD last.
define drop-half-installed
for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
    [ -e "$$info/RECORD" ] || rm -rf "$$info"; done
endef

# fairseq is published as source only.
define require-compiler
command -v "$${CXX:-g++}" >/dev/null || command -v c++ >/dev/null || { \
    echo "make: no C++ compiler found, and fairseq has to be compiled: install one (Debian, Ubuntu: g++)" >&2; exit 1; }; \
headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
[ -e "$$headers/Python.h" ] || { \
    echo "make: no Python.h in $$headers, and fairseq has to be compiled: install Python's headers (Debian, Ubuntu: python3.11-dev)" >&2; exit 1; }
endef
