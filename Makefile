# make demo, make test; VENV=path uses an environment that is there already, PYTHON=python3.12 makes one with it
VENV ?= .venv
PYTHON ?= python3
BIN := $(if $(filter /%,$(firstword $(VENV))),$(VENV),$(CURDIR)/$(VENV))/bin
export PATH := $(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1
.PHONY: help check install install-test demo plan parallel prune test test-slow test-all lint bench site
.NOTPARALLEL:

help:
	@echo 'make demo      install (make install: only that), run the pipeline on small embedded data, show the table'
	@echo 'make plan      what dvc repro would run, why, and about how long; S="gamma=0.1 epochs=50" asks for a change'
	@echo 'make parallel  train the variants side by side, J=2 at once, then run the rest'
	@echo 'make prune     remove the checkpoints of finished trainings'
	@echo 'make test      the tests, in under five minutes; make test-all: also kills and several processes'
	@echo 'make lint      ruff and mypy'
	@echo 'make site      the pages of docs/ as a site in .site/html'
	@echo 'make bench     speed and memory beside other implementations; BENCH="step data" narrows it'

# What would stop the pipeline after gigabytes are installed is said before anything is made.
check:
	@python="$(BIN)/python"; test -x "$$python" || python="$(PYTHON)"; \
	found=$$("$$python" -c 'import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))' 2> /dev/null) || \
	{ echo "error: Engram needs Python 3.11 or newer, and $$python is $${found:-not there}:" \
		"add PYTHON=python3.12, and remove $(VENV) if it was made with another"; exit 1; }
	@found=$$(git rev-parse --git-dir 2>&1) || { echo "error: DVC needs a git repository: run git init first ($$found)"; exit 1; }

# Installs $(1).txt, unless the environment holds it as it is now.
holds = cmp -s $(1).txt "$(VENV)/.engram-$(1).txt" || { echo "installing $(1).txt into $(VENV)"; \
	python -m pip install --quiet --disable-pip-version-check -r $(1).txt && cp $(1).txt "$(VENV)/.engram-$(1).txt"; }

install: check
	@test -s "$(VENV)/.engram-requirements.txt" || "$(BIN)/python" -m pip --version > /dev/null 2>&1 || \
		"$(PYTHON)" -m venv "$(VENV)"
	@$(call holds,requirements)
	@test -s .dvc/vega.js || python -m lib offline-plots

demo: install
	@python -m lib preset demo
	@python -m lib repro
	@echo
	@python -m lib show
	@echo
	@echo "Episode against concept bits: plots/plane.png. Everything to explore, in a browser: report.html. Charts of DVC's own:"
	@echo "    . $(VENV)/bin/activate; dvc plots show --open"
	@echo "Back to the study's settings, without the demo's results unless you have committed them:"
	@echo "    python -m lib preset study; git clean -fdq metrics plots dvc.lock"

plan: install
	@python -m lib plan $(S:%=-S %)

# A training for each GPU, or else for each core. dvc ends with 255 where it fails, at which xargs would stop the others.
parallel: install
	@dvc repro resolve download
	@set -- $$(echo "$${CUDA_VISIBLE_DEVICES-$$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null)}" | tr , ' '); \
	export GPUS="$$*" ENGRAM_THREADS=$${ENGRAM_THREADS:-1} OMP_NUM_THREADS=1; \
	test "$$GPUS" || set -- $$(python -c 'import os; print(*getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0))'); \
	export PLACES="$$*"; slot=$$(xargs --process-slot-var=SLOT true < /dev/null 2> /dev/null && echo --process-slot-var=SLOT); \
	ls data/variants | sed -n 's/\.json$$//p' | xargs -P $(or $(J),$$#) $$slot -I{} sh -c 'set -- $$PLACES; \
		shift $$(($${SLOT:-0} % $$#)); pin=$$(test $$ENGRAM_THREADS = 1 && command -v taskset) && pin="$$pin -c $$1"; \
		test -z "$$GPUS" || { export CUDA_VISIBLE_DEVICES=$$1; pin=; }; \
		$$pin dvc --wait-for-lock repro -s pretrain@{} || exit 1' || \
	{ echo "error: a training failed (above); make parallel goes on with it, and then with the rest"; exit 1; }
	@dvc repro

prune: install
	@python -m lib prune

install-test: install
	@$(call holds,requirements-test)

# The longest file first: one worker runs it, the other all the rest meanwhile.
test: install-test
	@OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		tests/test_pipeline.py $(sort $(dir $(wildcard tests/*/test_*.py))) tests/test_*.py

test-slow: install-test
	@OMP_NUM_THREADS=1 python -m pytest -m slow --durations 8

test-all: test test-slow

lint: install-test
	@ruff check && ruff format --check && mypy

bench: install
	@$(call holds,requirements-bench)
	@python -m bench $(BENCH)

site: install
	@$(call holds,requirements-docs)
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet && echo "the pages: .site/html/index.html"
