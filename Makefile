# The two commands of the README. Everything installs into .venv; torch and torchvision are a pair known to work together.
PYTHON ?= python3
BIN := .venv/bin
# Where git does not look: results/ is the committed record, with which `sanbench compare results $(MADE)/results` compares.
MADE := work/reproduce
OWN := --runs $(MADE)/runs --results $(MADE)/results

.venv/installed: pyproject.toml setup.py $(wildcard sanbench/ops/cpu/*.cpp sanbench/ops/cpu/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

.PHONY: reproduce reproduce-all reproduce-full readme test test-slow soak check
reproduce: .venv/installed
	$(BIN)/sanbench reproduce $(OWN)

reproduce-all: .venv/installed
	$(BIN)/sanbench reproduce --all $(OWN)

reproduce-full: .venv/installed
	$(BIN)/sanbench reproduce --full $(OWN)

readme: .venv/installed
	$(BIN)/python -m tests.test_docs

test: .venv/installed
	$(BIN)/python -m pytest -n 2

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

soak: .venv/installed
	$(BIN)/python -m tests.soak --minutes 30

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
