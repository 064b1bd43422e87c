# The targets set up .venv by themselves, test-pins .venv-pins. PYTHON picks the interpreter; TORCH a torch build, e.g. TORCH=torch==2.5.1
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
RUN = $(VENV)/bin/python

.PHONY: demo test test-pins
demo: $(VENV)/.ready
	$(RUN) train.py demo

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

# The core on the packages that stable-diffusion-webui pins, torch 2.1.2 among them (5 GB on disk): sessions, frozen layers, adapters,
# LoRA files, memory, optimizers, captions, jobs and the API. Pages, command line and fuzzing do not depend on the versions.
PINS ?= .venv-pins
PINNED = adapter cache captions checkpointing drawing extension_points frozen gallery inspect_file jobs live lora_file lora_keys memory \
	objective optimizers peft_format pictures samples session targets turns
test-pins: $(PINS)/.ready
	$(PINS)/bin/python -m pytest -q $(PINNED:%=tests/trainer/test_%.py) tests/trainer/hosts tests/trainer/api tests/hosts/test_fastapi_routes.py

$(PINS)/.ready: tests/pins.txt
	$(PYTHON) -m venv $(PINS)
	$(PINS)/bin/python -m pip install -q -r tests/pins.txt
	touch $(PINS)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip
	$(RUN) -m pip install -q "$(TORCH)" setuptools wheel
	$(RUN) -m pip install -q -e ".[standalone,test]"
	touch $(VENV)/.ready
