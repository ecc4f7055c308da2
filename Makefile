# Every target sets up its own environment in .venv and installs again only when pyproject.toml
# changes. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
LESSON ?=
SEED ?= 1
LAB_FLAGS ?=
FIRST := /lab/tree/notebooks/student/00_start_here.ipynb
# JupyterLab refuses to run as root, the only user of most containers, unless told so.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab lessons editions classroom figures test test-fast clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

lab: .venv/lessons ## open JupyterLab on lesson 00 of the edition to work in
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir=. --LabApp.default_url=$(FIRST) $(LAB_FLAGS)

lessons: .venv/lessons ## execute the whole book headless and store its outputs (LESSON=02 for one)
	$(BIN)/python -m minivmamba.classroom.book $(LESSON)

editions: .venv/lessons ## write the lessons without solutions into notebooks/student (LESSON=02 for one)
	$(BIN)/python -m minivmamba.classroom.editions $(LESSON)

classroom: .venv/classroom ## build a course for nbgrader in classroom/ (SEED= of the hidden inputs)
	$(BIN)/python -m minivmamba.classroom.course classroom --seed $(SEED)

figures: .venv/lessons ## redraw every picture of the book and of the README
	$(BIN)/python -m minivmamba.figures

test: .venv/test ## run everything: format, lint, types, tests, and the lessons strictly
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --nbval -n 2 --dist loadscope

test-fast: .venv/test ## format, lint and the quick tests: some minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest tests -m "not slow"

clean: ## remove the environment and every cache
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build *.egg-info

.venv/lessons: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[lessons]'
	@touch $@

.venv/classroom: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[classroom]'
	@touch .venv/lessons $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch .venv/lessons .venv/classroom $@
