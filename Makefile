# `make` says what there is. Each target makes .venv first, once, from Python 3.10 or newer.

PYTHON ?= python3
VENV   ?= .venv
ready  := $(VENV)/.ready
bin    := $(VENV)/bin

ours   := annotated_transformer benchmarks book/_ext tests tools

# One thread for each process: the same sums in the same order, no fight over the cores.
check test execute: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help book test check export execute bench address linkcheck clean

help:
	@echo "make book                       build the book into book/_build/html"
	@echo "make test                       run every check there is"
	@echo "make check                      run the fast part: lint, package in step, quick tests"
	@echo "make export                     write the package from the notebooks"
	@echo "make execute [NOTEBOOK=path]    run the notebooks in place and keep what they print"
	@echo "make bench                      train on Multi30k from raw text, and score and record it"
	@echo "make address REPO=owner/name    set the repository's public address wherever it is used"
	@echo "make linkcheck                  ask every address the book links to whether it answers"
	@echo "make clean                      remove what was built, .venv included"

$(ready): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=path/to/python3" >&2; exit 1; }
	@test -x $(bin)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(bin)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Built whole each time: a page that is not read again would keep its warnings to itself.
book: $(ready)
	@rm -rf book/_build/html
	$(bin)/jupyter-book build . --toc book/_toc.yml --path-output book --all -n -W --keep-going --quiet
	@echo "The book is built. Open $(CURDIR)/book/_build/html/index.html"

export: $(ready)
	$(bin)/python tools/export.py

check: $(ready)
	$(bin)/ruff check
	$(bin)/ruff format --check $(ours)
	$(bin)/python tools/export.py --check
	$(bin)/pytest -q -n 2 --dist loadfile -m "not slow"

test: $(ready)
	$(bin)/ruff check
	$(bin)/ruff format --check $(ours)
	$(bin)/python tools/export.py
	git diff --exit-code -- annotated_transformer
	@test -z "$$(git ls-files --others --exclude-standard -- annotated_transformer)" || { \
	  echo "not under version control:"; git ls-files --others --exclude-standard -- annotated_transformer; exit 1; }
	$(MAKE) book
	$(bin)/pytest -n 2 --dist loadfile --nbval --nbval-current-env notebooks tests

execute: $(ready)
	$(bin)/python tools/execute.py $(NOTEBOOK)

bench: $(ready)
	$(bin)/annotated-transformer train --corpus multi30k --source en --target de \
	  --config tiny --out runs/en-de
	$(bin)/python benchmarks/translation.py runs/en-de

address: $(ready)
	$(bin)/python tools/address.py $(REPO)

linkcheck: $(ready)
	$(bin)/jupyter-book build . --toc book/_toc.yml --path-output book --all --builder linkcheck

clean:
	rm -rf $(VENV) book/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
