# make roberta   pre-train a small RoBERTa on two workers, kill one, and watch it go on
# make test      run the tests
# make check     lint, format and types
# make docs      the site of README and docs/, in build/site; a link that leads nowhere stops it
# make bench     measure what faults cost, side by side with others (85 minutes, on a quiet machine)
# make goodput   measure what gets trained while nodes come and go, side by side with others (2 hours, on
#                a quiet machine; after an interruption it goes on where it was)
# make forks     run a few tests with other fairseqs: fairseq-fixed from PyPI, and FAIRSEQ=FOLDER, a
#                checkout of the main branch or another fork (a quarter of an hour each)
# make matrix    train every task of fairseq over kills, and write docs/compatibility.md (about 1 hour)
# make versions  run a quarter of the fast tests, and kills of real trainings, with the lowest and the
#                newest Python, Ray, torch and numpy (20 minutes; 6 GB at a time, beside what uv keeps)
# make storms    what takes minutes: the loss of Ray's head, of the control loop for good, ...; then
#                docs/durability.md (about an hour, as root; Slurm's with slurm-wlm and munge)
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

.PHONY: roberta test check docs bench goodput forks matrix versions storms clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

roberta: $(STAMPS)/example
	@$(BIN)/python examples/roberta/demo.py

test: $(STAMPS)/test
	@$(BIN)/python -m pytest tests --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

check: $(STAMPS)/check
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(STAMPS)/docs
	@PYTHONPATH=. $(BIN)/python website/options_page.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in build/site: open build/site/index.html, or $(BIN)/mkdocs serve"

bench: $(STAMPS)/bench
	@rm -f benchmarks/results.jsonl
	@$(BIN)/python benchmarks/faults.py
	@$(BIN)/python benchmarks/peers_at_size.py --contestants ours --arch small roberta_base --anew
	@$(BIN)/python benchmarks/update_cost.py
	@$(BIN)/python benchmarks/same_training.py
	@$(BIN)/python benchmarks/simulate.py

goodput: $(STAMPS)/bench
	@$(BIN)/python benchmarks/goodput.py
	@$(BIN)/python benchmarks/peers_at_size.py

forks: $(STAMPS)/test
	@$(call test-with-fork,fairseq-fixed,fairseq-fixed)
	@$(if $(FAIRSEQ),$(call test-with-fork,own,$(FAIRSEQ)),echo "make: for another one: make forks FAIRSEQ=FOLDER")

matrix: $(STAMPS)/matrix
	@rm -f benchmarks/matrix.jsonl
	@$(BIN)/python benchmarks/matrix.py

versions: $(STAMPS)/venv
	@$(INSTALL) uv
	@$(BIN)/python benchmarks/versions.py

storms: $(STAMPS)/storms
	@$(BIN)/python -m pytest tests/storms $(PYTEST_ARGS)
	@$(BIN)/python -m pytest tests -m storm $(PYTEST_ARGS)
	@rm -f benchmarks/durability.jsonl
	@$(BIN)/python benchmarks/durability.py

clean:
	@rm -rf $(VENV) .forks .installs .versions build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
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
	@$(INSTALL) -e '.[example,fairseq]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/example
	@$(drop-half-installed)
	@echo "Setting up .venv: test packages (less than 1 minute) ..."
	@$(INSTALL) -e '.[aws,example,fairseq,test]'
	@touch $@

# The benchmarks use what the tests use to start runs and nodes.
$(STAMPS)/bench: $(STAMPS)/test
	@$(drop-half-installed)
	@echo "Setting up .venv: benchmark packages (less than 1 minute) ..."
	@$(INSTALL) -e '.[aws,bench,example,fairseq,test]'
	@touch $@

$(STAMPS)/matrix: $(STAMPS)/test
	@$(drop-half-installed)
	@echo "Setting up .venv: packages of the matrix (a few seconds) ..."
	@$(INSTALL) -e '.[aws,example,fairseq,matrix,test]'
	@touch $@

# Ray's job server, too.
$(STAMPS)/storms: $(STAMPS)/test
	@$(drop-half-installed)
	@echo "Setting up .venv: packages of the storms (less than 1 minute) ..."
	@$(INSTALL) -e '.[aws,example,fairseq,storms,test]'
	@touch $@

# Not `-e .[dev]`: lint and types need neither torch nor fairseq.
$(STAMPS)/check: constraints.txt | $(STAMPS)/venv
	@$(drop-half-installed)
	@echo "Setting up .venv: ruff and mypy (a few seconds) ..."
	@$(INSTALL) ruff mypy
	@touch $@

# Not `-e .[docs]`: pages need neither torch nor fairseq.
$(STAMPS)/docs: constraints.txt | $(STAMPS)/venv
	@$(drop-half-installed)
	@echo "Setting up .venv: mkdocs (a few seconds) ..."
	@$(INSTALL) mkdocs-material
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

# $(1): a name, $(2): what pip installs. A fork has an environment of its own, which takes all but
# the fork and what that brings from .venv.
define test-with-fork
set -e; fork=.forks/$(1); \
if [ ! -e $$fork/ready ]; then \
    echo "Setting up $$fork (2 to 4 minutes) ..."; \
    $(BIN)/python -m venv --clear --without-pip $$fork; \
    where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
    $(BIN)/python -c "$$where" >"$$($$fork/bin/python -c "$$where")/venv.pth"; \
    grep -vE '^(fairseq|hydra-core|omegaconf|antlr4)' constraints.txt >$$fork/constraints.txt; \
    export PIP_CONSTRAINT=$$fork/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1; \
    $$fork/bin/python -m pip install -q -q --no-build-isolation $(2); \
    $$fork/bin/python -m pip install -q -q --no-deps --no-build-isolation -e .; \
    touch $$fork/ready; \
fi; \
echo "Testing with $(2) ..."; \
$$fork/bin/python -m pytest $(FORK_TESTS) $(PYTEST_ARGS)
endef

SAME := tests/test_same_training.py::test
FORK_TESTS := \
    tests/compat/test_compat.py::test_fairseq_code_works_with_its_patch \
    tests/training/test_train_iterator.py \
    tests/test_launch.py::test_hydra_configs_train_on_ray \
    $(SAME)_undisturbed_training_logs_what_stock_fairseq_logs_digit_for_digit \
    $(SAME)_a_fixed_batch_trains_alike_on_1_2_and_3_workers_and_through_resizes_and_kills \
    $(SAME)_a_checkpoint_of_stock_fairseq_goes_on_at_another_world_size \
    tests/test_recovery.py::test_after_a_failure_the_validation_data_is_not_read_before_it_is_needed \
    tests/test_recovery.py::test_a_driver_told_to_end_saves_a_checkpoint_and_the_same_command_goes_on \
    tests/test_recovery.py::test_after_failures_the_whole_state_is_that_of_an_undisturbed_run_bit_for_bit
