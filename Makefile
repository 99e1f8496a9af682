PYTHON ?= python3

export:
	$(PYTHON) tools/export.py
