# Two commands do all the set-up: `make run-all` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PROFILE ?= small
NOTEBOOKS ?=
PARAMS ?=
RUNS_DIR ?= runs
FRESH ?=
# torch: for ROCm from PyTorch's own index where a ROCm installation is found, else the pinned version.
# Override with TORCH=rocm, TORCH=cpu, TORCH="torch==... --index-url ..." or TORCH=present for the torch an image already has.
ROCM_INDEX ?= https://download.pytorch.org/whl/rocm7.1
TORCH ?= torch==2.13.0$(if $(wildcard /opt/rocm /dev/kfd), --index-url $(ROCM_INDEX))
override TORCH := $(patsubst rocm,torch==2.13.0 --index-url $(ROCM_INDEX),$(TORCH))
override TORCH := $(patsubst cpu,torch==2.13.0 --index-url $(dir $(ROCM_INDEX))cpu,$(TORCH))

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# glibc keeps freed blocks instead of handing them back: free speed on a CPU (tests/benchmarks), no effect on a GPU
export MALLOC_TRIM_THRESHOLD_ := -1
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 268435456
export TOKENIZERS_PARALLELISM := false

quote = '$(subst ','\'',$(1))'

# KIT=folder: work without a network, from a folder that `make fetch` filled
ifdef KIT
MODELS_DIR := $(abspath $(KIT))/models
HF_HUB_CACHE := $(abspath $(KIT))/hub
HF_DATASETS_CACHE := $(abspath $(KIT))/datasets
HF_HUB_OFFLINE := 1
export MODELS_DIR HF_HUB_CACHE HF_DATASETS_CACHE HF_HUB_OFFLINE
ifneq ($(wildcard $(KIT)/wheels),)
PIP_NO_INDEX := 1
PIP_FIND_LINKS := $(abspath $(KIT))/wheels
export PIP_NO_INDEX PIP_FIND_LINKS
endif
endif
TO ?= kit

.PHONY: help setup doctor model run-all catch-up lab test campaign lint checks image-check env-check canary clean \
        fetch rehearse site slides hub hub-check browser

# what only one target needs is installed by that target, at its pinned versions
, := ,
extra = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c $(VENV)/torch.txt -e '.[$(1)]'

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "  make run-all PROFILE=tiny NOTEBOOKS=\"00 01 02\" PARAMS=\"max_steps=5 seed=1\" RUNS_DIR=some/folder"

setup: $(READY)  ## make the environment in .venv: torch first, then the pinned packages around it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is %d.%d: set PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(if $(filter present,$(TORCH)),--system-site-packages) $(VENV)
	@$(PY) -c 'import torch' 2>/dev/null || { test "$(TORCH)" != present || { echo "error: TORCH=present, but this Python has no torch"; exit 1; }; \
	  echo "installing $(firstword $(TORCH))"; $(PY) -m pip install --quiet --disable-pip-version-check $(TORCH); }
	@$(PY) -c 'import torch; print("torch==" + torch.__version__)' > $(VENV)/torch.txt
	@echo "installing the other packages around $$(cat $(VENV)/torch.txt)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c $(VENV)/torch.txt -e '.[test]'
	@$(PY) -m pip check
	@touch $@

doctor: $(READY)  ## what this machine is, what works on it, and remedies for what does not
	@$(PY) -m helpers.doctor

model: $(READY)  ## fetch the base model of PROFILE
	@$(PY) -m helpers.sources.base_models $(PROFILE)

run-all: $(READY)  ## run the notebooks without a browser; results and pages in runs/<profile>
	@$(PY) -m helpers.headless.runner --profile=$(call quote,$(PROFILE)) --notebooks=$(call quote,$(NOTEBOOKS)) \
	  --params=$(call quote,$(PARAMS)) --runs-dir=$(call quote,$(RUNS_DIR)) $(if $(FRESH),--fresh)

catch-up: $(READY)  ## pack the finished runs of PROFILE, for learners who lost theirs or came late
	@$(PY) -m helpers.workshop catch-up --profile=$(call quote,$(PROFILE)) --runs-dir=$(call quote,$(RUNS_DIR)) $(CATCH_UP_ARGS)

# its settings keep JupyterLab from asking each newcomer about news of Jupyter
LAB_SETTINGS := --LabApp.app_settings_dir=docs/workshop/lab
lab: $(READY)  ## open JupyterLab on this machine only, with its token
	@$(VENV)/bin/jupyter lab --ip=127.0.0.1 --notebook-dir=notebooks $(LAB_SETTINGS) $(LAB_ARGS)

# In two processes, one core each: the tests that look at the executed series, and all others. 5: pytest chose none.
test: $(READY)  ## the whole test suite: offline, no GPU, every notebook on the tiny profile
	@export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1; log=$$(mktemp); \
	$(PY) -m pytest -m series $(TEST_ARGS) >$$log 2>&1 & \
	$(PY) -m pytest -m "not series" $(TEST_ARGS); others=$$?; \
	wait $$!; series=$$?; echo; echo "The tests of the executed series:"; cat $$log; rm $$log; \
	case $$others$$series in 00|05|50) ;; 55) echo "error: no test was chosen"; exit 5;; *) exit 1;; esac

campaign: $(READY)  ## slow: runs killed at random moments and gone on with, and much random input
	@HF_HUB_OFFLINE=1 $(PY) -m pytest tests/campaign $(TEST_ARGS)

lint: $(READY)  ## ruff over .py and .ipynb, and no outputs in committed notebooks
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/nbstripout --verify --keep-id notebooks/*.ipynb notebooks/solutions/*.ipynb

checks: $(READY)  # the tools of the three targets below and of some tests; a reader of the notebooks needs none
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c $(VENV)/torch.txt -e '.[test,checks]'

image-check: checks  ## build the image on a stand-in for its base, run it, and check what docs/container.md promises
	@$(PY) tests/check_image.py --torch "$(TORCH)" $(IMAGE_ARGS)

env-check: $(READY)  ## install environment.yml's pip part into a fresh environment of PYTHON and run the notebooks there
	@$(PY) tests/check_environment.py --python "$(PYTHON)" --torch "$(TORCH)"

canary: $(READY)  ## the same with the newest release of every package, to learn early what breaks
	@$(PY) tests/check_environment.py --python "$(PYTHON)" --torch "$(TORCH)" --newest

fetch: $(READY)  ## bring what PROFILE needs into the folder TO; WHEELS=1 adds the packages of this environment
	@test -z "$(WHEELS)" || { mkdir -p "$(TO)/wheels" && $(PY) -m pip download --quiet --dest "$(TO)/wheels" $(TORCH) \
	  && $(PY) -m pip download --quiet --dest "$(TO)/wheels" --find-links "$(TO)/wheels" -c constraints.txt -c $(VENV)/torch.txt '.[test]' 'setuptools>=77'; }
	@$(PY) -m helpers.workshop fetch "$(TO)" --profile "$(PROFILE)"

rehearse: $(READY)  ## run the series from the folder KIT, read-only, with the network cut off
	@test -n "$(KIT)" || { echo "error: say which folder: make rehearse KIT=folder"; exit 2; }
	@$(PY) -m helpers.workshop rehearse "$(KIT)" --profile "$(PROFILE)" --notebooks "$(NOTEBOOKS)"

site: $(READY)  ## build the site in site/html from the executed notebooks of PROFILE
	@$(call extra,site)
	@$(PY) -m docs.build_site --profile "$(PROFILE)" --runs-dir "$(RUNS_DIR)"

slides: $(READY)  ## make a deck of slides in site/slides from each executed notebook of PROFILE
	@$(call extra,site)
	@$(PY) -m docs.build_slides --profile "$(PROFILE)" --runs-dir "$(RUNS_DIR)"

browser: $(READY)  ## drive the series, the site and the slides in Chromium, on the tiny profile
	@$(call extra,site$(,)checks)
	@$(PY) -m pytest tests/browser $(TEST_ARGS)

PROXY := $(VENV)/bin/configurable-http-proxy
$(PROXY):
	@command -v npm > /dev/null || { echo "error: JupyterHub's proxy needs Node.js and npm: apt install nodejs npm"; exit 1; }
	@npm install --silent --global --prefix $(VENV) configurable-http-proxy@5.3.0

hub: $(READY) $(PROXY)  ## a JupyterHub for a room: one seat a person; see docs/instructor.md
	@$(call extra,hub)
	@PATH="$(abspath $(VENV))/bin:$$PATH" jupyterhub -f docs/workshop/jupyterhub_config.py $(HUB_ARGS)

hub-check: $(READY) $(PROXY)  ## start that JupyterHub with two users and look at their seats
	@$(call extra,hub)
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pytest tests/workshop/check_*.py $(TEST_ARGS)

clean:  ## remove results and caches; keeps the environment and the models
	rm -rf runs site .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
