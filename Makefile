# Both targets set up .venv by themselves. PYTHON picks the interpreter; TORCH a torch build, e.g. TORCH=torch==2.5.1
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
RUN = $(VENV)/bin/python

.PHONY: demo test
demo: $(VENV)/.ready
	$(RUN) train.py demo

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip
	$(RUN) -m pip install -q "$(TORCH)" setuptools wheel
	$(RUN) -m pip install -q -e ".[standalone,test]"
	touch $(VENV)/.ready
