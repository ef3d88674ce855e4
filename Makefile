# make demo, make test; VENV=path reuses an environment that is already there
VENV ?= .venv
PYTHON ?= python3
TEST_PROCESSES ?= 2
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.engram-requirements.txt
export PATH := $(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help install demo test faults test-oldest test-newest prune bench plan parallel scaling

help:
	@echo "make demo     install, run the whole pipeline on small embedded data, show the table"
	@echo "make test     install, run the tests, two files at a time; TEST_PROCESSES=4 for four"
	@echo "make faults   the fault tests in full: over 100 kills, full disks, bad files; about 20 minutes"
	@echo "make test-oldest, make test-newest"
	@echo "              the tests with the oldest or newest light dependencies that pyproject.toml allows;"
	@echo "              TESTS=\"tests/test_report.py\" narrows them"
	@echo "make install  only the environment, in $(VENV)"
	@echo "make plan     what dvc repro would run, why, and about how long; S=\"gamma=0.1 epochs=50\" asks for a change"
	@echo "make parallel train the variants side by side, then run the rest; J=2 says how many at once"
	@echo "make prune    remove the checkpoints of finished trainings"
	@echo "make scaling  the tests that take minutes: remotes, queue, machines that fail (docs/scaling.md)"
	@echo "make bench    install the peers too, measure them beside this project; BENCH=\"data step\" or --quick narrows it,"
	@echo "              BENCH=\"--device cuda\" measures a GPU"

install: $(STAMP) .dvc/vega.js

$(STAMP): requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements.txt asks for into $(VENV), if it is not there yet"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@cp requirements.txt $(STAMP)

.dvc/vega.js: $(STAMP) lib/offline_plots.py
	@$(BIN)/python -m lib.offline_plots

demo: install
	@python -m lib.preset demo
	@dvc repro
	@python -m lib.report.show
	@echo
	@echo "The table:    metrics/results.md   (numbers: dvc metrics show)"
	@echo "The pictures: plots/tsne/overview.png, plots/curves.png, plots/accuracy.png, plots/confusion.png"
	@echo "              dvc plots show --open (after: . $(VENV)/bin/activate)"
	@echo "params.yaml, metrics/ and plots/ now hold the demo. To return to the study's settings:"
	@echo "              python -m lib.preset study"
	@echo "and, to remove the demo's results (unless you have committed them):"
	@echo "              git clean -fdq metrics plots dvc.lock"

# Two processes of one thread each: kernels of several threads in several processes would wait for one another. The
# tests that are about threads ask for them.
test: install
	@OMP_NUM_THREADS=1 python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

scaling: install
	@ENGRAM_TEST_SCALING=1 python -m pytest -rs --durations 8 tests/test_scaling.py tests/test_scaling_table.py \
		tests/test_scaling_slow.py

faults: install
	@FAULTS=all FAULTS_LINES=.pytest_cache/refused.txt python -m pytest tests/faults \
		--durations 12 -o tmp_path_retention_policy=failed

# An environment of its own for each end of the ranges, made anew when the ranges change.
.venv.oldest/tried.txt .venv.newest/tried.txt: .venv.%/tried.txt: pyproject.toml requirements.txt tests/versions.py
	@$(PYTHON) -m venv .venv.$*
	@$(PYTHON) -m tests.versions $* > .venv.$*/asked.txt
	@echo "installing the $* allowed versions of the light dependencies into .venv.$*"
	@.venv.$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -r .venv.$*/asked.txt
	@.venv.$*/bin/python -m pip freeze > $@

test-oldest test-newest: test-%: .venv.%/tried.txt
	@.venv.$*/bin/python -m pip check
	@PATH=$(CURDIR)/.venv.$*/bin:$(PATH) python -m lib.offline_plots
	@PATH=$(CURDIR)/.venv.$*/bin:$(PATH) python -m pytest $(TESTS)

BENCH_STAMP := $(VENV)/.engram-requirements-bench.txt

$(BENCH_STAMP): requirements-bench.txt requirements.txt
	@echo "installing what requirements-bench.txt asks for into $(VENV), if it is not there yet"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@cp requirements-bench.txt $(BENCH_STAMP)

bench: install $(BENCH_STAMP)
	@python -m bench.run $(BENCH)

plan: install
	@python -m lib.plan $(foreach setting,$(S),-S $(setting))

parallel: install
	@python -m lib.side_by_side $(if $(J),-j $(J))

prune: install
	@python -m lib.core.checkpoint
