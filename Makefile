# Two commands do all the set-up: `make run-all` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
PROFILE ?= small
RUNS_DIR ?= runs
TO ?= kit
# uv installs the same versions faster; `make setup UV=` uses pip all the same
ifeq ($(origin UV),undefined)
UV := $(shell command -v uv)
endif

# Which build of torch: rocm, cuda or cpu, by what this machine has. TORCH=present takes the torch of PYTHON, and anything
# else goes to pip as it is: TORCH="torch==... --index-url ...".
TORCH ?= $(if $(wildcard /opt/rocm /dev/kfd),rocm,$(if $(wildcard /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1),cuda,cpu))
TORCH_PIN := torch==2.13.0
ROCM_INDEX ?= https://download.pytorch.org/whl/rocm7.1
CPU_INDEX = $(dir $(ROCM_INDEX))cpu

# What you give reaches a command as one quoted word (quote) or as arguments split like a shell does, each quoted (arguments).
# make itself would run a $(shell ...) in a value, so a dollar sign is refused.
quote = '$(subst ','\'',$(1))'
SHLEX := import shlex, sys; print(*map(shlex.quote, shlex.split(sys.argv[1])))
arguments = $(shell python3 -c '$(SHLEX)' $(call quote,$(1)))$(if $(filter-out 0,$(.SHELLSTATUS)),$(error a quote is not closed in: $(1)))
define newline


endef
NEEDED := PYTHON VENV PROFILE RUNS_DIR TORCH ROCM_INDEX TO
GIVEN := $(NEEDED) NOTEBOOKS PARAMS FRESH YES KIT WHEELS UV UPGRADE CATCH_UP_ARGS LAB_ARGS TEST_ARGS IMAGE_ARGS HUB_ARGS
from_user = $(filter command environment override,$(origin $(1)))
$(foreach v,$(GIVEN),$(if $(call from_user,$v),$(if $(findstring $$,$(value $v))$(findstring $(newline),$(value $v)),\
  $(error $v contains a dollar sign or a line break, which make cannot pass on: choose another value))))
$(foreach v,$(NEEDED),$(if $(strip $($v)),,$(error $v is empty: give it a value, or leave it out)))
$(if $(shell LC_ALL=C; [[ $(call quote,$(VENV)) =~ ^[][A-Za-z0-9_./@+,-]+$$ ]] || echo bad),\
  $(error VENV is $(VENV): choose a path of letters, digits and any of . _ - / without spaces))

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
# glibc keeps freed blocks instead of handing them back: free speed on a CPU (tests/benchmarks), no effect on a GPU
export MALLOC_TRIM_THRESHOLD_ := -1
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TOP_PAD_ := 268435456
export TOKENIZERS_PARALLELISM := false

# KIT=folder: work without a network, from a folder that `make fetch` filled
ifneq ($(strip $(KIT)),)
KIT_DIR := $(shell cd -- $(call quote,$(KIT)) 2>/dev/null && pwd)
$(if $(KIT_DIR),,$(error there is no folder $(KIT): make fetch TO=folder makes one))
export MODELS_DIR := $(KIT_DIR)/models
export HF_HUB_CACHE := $(KIT_DIR)/hub
export HF_DATASETS_CACHE := $(KIT_DIR)/datasets
export HF_HUB_OFFLINE := 1
WHEELHOUSE := $(shell cd -- $(call quote,$(KIT_DIR)/wheels) 2>/dev/null && pwd)
endif

# -qq keeps errors and hides warnings about the machine's own pip configuration
pip = $(PY) -m pip $(1) -qq --disable-pip-version-check
from = $(if $(WHEELHOUSE),--no-index --find-links $(call quote,$(WHEELHOUSE)))
install = $(if $(UV),$(call quote,$(UV)) pip install --quiet --python $(PY),$(call pip,install)) $(from)
new_environment = $(if $(UV),$(call quote,$(UV)) venv --quiet --seed --python,) $(call quote,$(PYTHON)) $(if $(UV),,-m venv) \
  $(if $(filter present,$(TORCH)),--system-site-packages) $(VENV)
torch_version = import importlib.metadata as m; print(m.version("torch"))
options = --profile=$(call quote,$(PROFILE)) --runs-dir=$(call quote,$(RUNS_DIR))

# find_torch leaves what is to be installed in the shell's "$@". An index that does not answer within seconds is not used.
answers = import os, sys, threading, urllib.request; t = threading.Timer(8, os._exit, [1]); t.daemon = True; t.start(); \
  urllib.request.urlopen(sys.argv[1], timeout=5)
find_torch_rocm = set -- $(TORCH_PIN) --index-url $(call quote,$(ROCM_INDEX))
find_torch_cuda = set -- $(TORCH_PIN)
find_torch_cpu = set -- $(TORCH_PIN); if $(PY) -c '$(answers)' $(call quote,$(CPU_INDEX)/torch/) 2>/dev/null; \
  then set -- "$$@" --index-url $(call quote,$(CPU_INDEX)); \
  else echo "PyTorch's index of CPU builds does not answer, so torch comes from your default index and may be larger"; fi
find_torch = $(if $(WHEELHOUSE),$(find_torch_cuda),$(or $(find_torch_$(strip $(TORCH))),set -- $(call arguments,$(TORCH))))

.PHONY: help setup doctor model run-all catch-up report lab test campaign lint lock tools image-check env-check canary clean \
        fetch rehearse site slides hub hub-check browser

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo
	@echo "  make run-all PROFILE=tiny NOTEBOOKS=\"00 01 02\" PARAMS=\"max_steps=5 seed=1\" RUNS_DIR=some/folder"

setup: $(READY)  ## make the environment in .venv: torch first, then the locked packages around it

$(READY): pyproject.toml requirements.txt
	@$(call quote,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is %d.%d: set PYTHON=python3.12" % sys.version_info[:2])'
	@$(if $(UV),,$(call quote,$(PYTHON)) -c 'import ensurepip, venv' || { echo "error: this Python has no venv; on Debian or Ubuntu: apt install python3-venv"; exit 1; })
	@test -x $(PY) || $(new_environment)
	@$(PY) -c '$(torch_version)' >/dev/null 2>&1 || { test $(call quote,$(TORCH)) != present || { echo "error: TORCH=present, but this Python has no torch"; exit 1; }; \
	  $(find_torch); echo "installing $$1$(if $(filter rocm cuda cpu,$(TORCH)), ($(TORCH))); this can take minutes"; $(install) "$$@"; }
	@echo "installing the other packages around torch $$($(PY) -c '$(torch_version)')"
	@$(install) --no-deps --require-hashes -r requirements.txt
	@$(install) --no-deps --no-build-isolation -e .
	@$(if $(UV),$(call quote,$(UV)) pip check --quiet --python $(PY),$(PY) -m pip check)
	@touch $@

doctor: $(READY)  ## what this machine is, what works on it, and remedies for what does not
	@$(PY) -m helpers.doctor

model: $(READY)  ## fetch the base model of PROFILE
	@$(PY) -m helpers.sources $(call quote,$(PROFILE))

run-all: $(READY)  ## run the notebooks without a browser; results and pages in runs/<profile>
	@$(PY) -m helpers.headless $(options) --notebooks=$(call quote,$(NOTEBOOKS)) --params=$(call quote,$(PARAMS)) $(if $(FRESH),--fresh)

catch-up: $(READY)  ## pack the finished runs of PROFILE, for learners who lost theirs or joined late
	@$(PY) -m helpers.workshop catch-up $(options) $(call arguments,$(CATCH_UP_ARGS))

report: $(READY)  ## one archive that tells us how the series ran on your machine; you see it before it is written
	@$(PY) -m helpers.publish.report $(options) $(if $(YES),--yes)

# its settings wrap long lines and keep JupyterLab from asking about news; each kernel begins with kernel_start.py
lab: $(READY)  ## open JupyterLab on this machine only, with its token, at 00_setup_check
	@mkdir -p my_data $(call quote,$(RUNS_DIR))
	@$(if $(call from_user,PROFILE),$(PY) -m helpers.workshop lab --profile=$(call quote,$(PROFILE)))
	@PYTHONSTARTUP=$(call quote,$(CURDIR)/docs/workshop/lab/kernel_start.py) $(VENV)/bin/jupyter lab --ip=127.0.0.1 --LabApp.app_settings_dir=docs/workshop/lab \
	  --LabApp.default_url=/lab/tree/notebooks/00_setup_check.ipynb $(call arguments,$(LAB_ARGS))

# In two processes, one core each: the tests of the executed series and of how runs end, and all others. 5: pytest chose none.
test: $(READY)  ## the whole test suite: offline, no GPU, every notebook on the tiny profile
	@export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1; log=$$(mktemp); \
	$(PY) -m pytest -m series $(call arguments,$(TEST_ARGS)) >$$log 2>&1 & \
	$(PY) -m pytest -m "not series" $(call arguments,$(TEST_ARGS)); others=$$?; \
	wait $$!; series=$$?; echo; echo "The tests of the executed series and of how runs end:"; cat $$log; rm $$log; \
	case $$others$$series in 00|05|50) ;; 55) echo "error: no test was chosen"; exit 5;; *) exit 1;; esac

campaign: $(READY)  ## slow: runs killed at random moments and resumed, and much random input
	@HF_HUB_OFFLINE=1 $(PY) -m pytest tests/campaign $(call arguments,$(TEST_ARGS))

SCHEMA = $(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor
lint: $(TOOLS)  ## ruff over .py and .ipynb, no outputs in committed notebooks, GitHub's files against their schemas
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/nbstripout --verify --keep-id notebooks/*.ipynb notebooks/solutions/*.ipynb
	@$(SCHEMA).github-workflows .github/workflows/*.yml
	@$(SCHEMA).github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml && $(SCHEMA).github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(SCHEMA).citation-file-format CITATION.cff

tools: $(TOOLS)  # for lint, the site, the slides, the hub and the checks of image and browser; a reader of the notebooks needs none
$(TOOLS): $(READY) requirements-tools.txt
	@echo "installing the tools for site, hub and checks"
	@$(install) --no-deps --require-hashes -r requirements-tools.txt
	@touch $@

# torch depends on the hardware: the set-up installs it first, with what only torch needs, and the lock leaves both out.
# The second file is the first and every extra.
compile = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" \
  --overrides <(echo "torch ; sys_platform == 'never'") $(addprefix --no-emit-package ,torch networkx sympy mpmath) $(if $(UPGRADE),--upgrade)
lock:  ## write both lock files anew, within the bounds of pyproject.toml; UPGRADE=1 takes newer versions
	@test -n $(call quote,$(UV)) || { echo "error: make lock needs uv: pip install uv"; exit 1; }
	@$(compile) --extra test -o requirements.txt pyproject.toml
	@$(compile) --all-extras -c requirements.txt -o requirements-tools.txt pyproject.toml

image-check: $(TOOLS)  ## build the image on a stand-in for its base, run it, and check what docs/container.md promises
	@$(PY) tests/check_image.py --torch $(if $(filter rocm cuda cpu,$(TORCH)),$(TORCH_PIN),$(call quote,$(TORCH))) $(call arguments,$(IMAGE_ARGS))

env-check: $(READY)  ## set up a fresh environment of PYTHON, compare it with the lock, and run the notebooks there
	@$(PY) tests/check_environment.py --python $(call quote,$(PYTHON)) --torch $(call quote,$(TORCH))

canary: $(READY)  ## the same with the newest release of every package, to learn early what breaks
	@$(PY) tests/check_environment.py --python $(call quote,$(PYTHON)) --torch $(call quote,$(TORCH)) --newest

fetch: $(READY)  ## bring what PROFILE needs into the folder TO; WHEELS=1 adds the packages of this environment
	@test -z $(call quote,$(WHEELS)) || { mkdir -p $(call quote,$(TO)/wheels); $(find_torch); \
	  $(call pip,download) --dest $(call quote,$(TO)/wheels) "$$@" && $(call pip,download) --dest $(call quote,$(TO)/wheels) --no-deps --require-hashes -r requirements.txt; }
	@$(PY) -m helpers.workshop fetch $(call quote,$(TO)) --profile $(call quote,$(PROFILE))

rehearse: $(READY)  ## run the series from the folder KIT, read-only, with the network cut off
	@test -n $(call quote,$(KIT_DIR)) || { echo "error: say which folder: make rehearse KIT=folder"; exit 2; }
	@$(PY) -m helpers.workshop rehearse $(call quote,$(KIT_DIR)) --profile $(call quote,$(PROFILE)) --notebooks $(call quote,$(NOTEBOOKS))

site: $(TOOLS)  ## build the site in site/html from the executed notebooks of PROFILE
	@$(PY) -m docs.build_site $(options)

slides: $(TOOLS)  ## make a deck of slides in site/slides from each executed notebook of PROFILE
	@$(PY) -m docs.build_slides $(options)

browser: $(TOOLS)  ## drive the series, the site and the slides in Chromium, on the tiny profile
	@$(PY) -m pytest tests/browser $(call arguments,$(TEST_ARGS))

PROXY := $(VENV)/bin/configurable-http-proxy
$(PROXY):
	@command -v npm > /dev/null || { echo "error: JupyterHub's proxy needs Node.js and npm: apt install nodejs npm"; exit 1; }
	@npm install --silent --global --prefix $(VENV) configurable-http-proxy@5.3.0

hub: $(TOOLS) $(PROXY)  ## a JupyterHub for a room: one seat a person; see docs/instructor.md
	@PATH="$(abspath $(VENV))/bin:$$PATH" jupyterhub -f docs/workshop/jupyterhub_config.py $(call arguments,$(HUB_ARGS))

hub-check: $(TOOLS) $(PROXY)  ## start that JupyterHub with two users and look at their seats
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pytest tests/workshop/check_*.py $(call arguments,$(TEST_ARGS))

clean:  ## remove results and caches; keeps the environment and the models
	@test ! -e $(READY) || $(PY) -m helpers.headless --in-use=runs
	rm -rf runs site .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
