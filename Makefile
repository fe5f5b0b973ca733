# Everything a fresh machine needs, from python3 (3.11 or later, with venv) and make.
PYTHON ?= python3
BIN := .venv/bin
CONSTRAINTS ?= scripts/constraints.txt
PIP_INSTALL = -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS))
PYTEST_FLAGS ?= --numprocesses auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test soak gpu check format bench dist pictures

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## Make .venv/ with embedx and everything it needs

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: install ## Embed the bundled sample images into demo/ and show what is there
	$(BIN)/embedx extract --backbone shufflenet_v2_x0_5 --weights sample --group-key class --out demo
	$(BIN)/embedx info demo
	$(BIN)/embedx verify demo

test: install ## Run the tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

soak: install ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m soak --numprocesses auto

gpu: install ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: install ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Format the code, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure images per second, end to end, beside the forward pass alone and loading alone
	$(BIN)/python scripts/bench.py measure

pictures: install ## Draw the README's pictures anew, from the values that were measured
	$(BIN)/python -m scripts.pictures.draw

dist: install ## Build wheel and sdist, check them, and try the wheel in a fresh environment
	$(BIN)/python $(PIP_INSTALL) --editable '.[dist]'
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/python $(PIP_INSTALL) dist/*.whl
	build/fresh/bin/embedx extract --backbone shufflenet_v2_x0_5 --weights sample --out build/store
	build/fresh/bin/embedx verify build/store
