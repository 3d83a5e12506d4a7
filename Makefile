# `make help` lists the commands. Each of them makes .venv first if it has to.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
# Before a command: how PyTorch's threads wait, and how many there are; what is set already stays.
THREADS := env $$($(BIN)/python -m dclip_kit.runtime.machine)
RUN := $(THREADS) $(BIN)/papermill --kernel python3 --cwd notebooks --no-progress-bar \
  --stdout-file - --stderr-file -
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.PHONY: help setup test demo lab notebooks bench badges pocket clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with all extras and test tools (again only when pyproject.toml changes)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Expected Python 3.11 or newer, but \
	$(PYTHON) is %d.%d; run make with PYTHON=/path/to/a/newer/python3" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

test: $(READY) ## ruff, mypy, pytest, and the committed notebooks against their stored outputs; offline
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(THREADS) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests notebooks \
	  --nbval-lax --nbval-current-env --numprocesses=auto --maxprocesses=4 --dist=loadfile

demo: $(READY) ## train and measure DCLIP on the pocket profile, then walk on; see runs/demo
	mkdir -p $(DEMO)
	rm -f $(DEMO)/report.json $(DEMO)/*.ipynb $(DEMO)/*.html
	$(RUN) -p full True -p run_dir ../$(DEMO) notebooks/00_quickstart.ipynb $(DEMO)/00_quickstart.ipynb
	@$(BIN)/python -m assets.make.notebook_files table $(DEMO)/report.json
	@set -e; for each in 01_region_detection 02_teacher_weighting 03_distillation_training; do \
	  $(RUN) notebooks/$$each.ipynb $(DEMO)/$$each.ipynb; done
	@set -e; for each in 04_retrieval_evaluation 05_query_gallery; do \
	  $(RUN) -p saved ../$(DEMO)/arms notebooks/$$each.ipynb $(DEMO)/$$each.ipynb; done
	$(RUN) -p run ../$(DEMO)/own_pictures notebooks/06_your_own_pictures.ipynb $(DEMO)/06_your_own_pictures.ipynb
	$(BIN)/python -m assets.make.notebook_files static $(DEMO)/*.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --coalesce-streams $(DEMO)/*.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to html $(DEMO)/*.ipynb
	@$(BIN)/python -m assets.make.notebook_files table $(DEMO)/report.json
	@echo "Figures: $(CURDIR)/$(DEMO)/00_quickstart.html, and 01 to 06 beside it"

lab: $(READY) ## open JupyterLab on the notebooks
	$(THREADS) $(BIN)/jupyter lab --allow-root notebooks

# The plotly renderers: `notebook` above puts plotly.js into the page once, so its HTML draws without
# a network; the PNGs stored below let code hosts show the figures, and cost a Chromium here only.
notebooks: $(READY) ## run all notebooks again in place, with pictures of their figures (needs a Chromium)
	@test -n "$$BROWSER_PATH" || command -v chromium chromium-browser google-chrome >/dev/null || { \
	  echo "Expected a Chromium to draw the figures' pictures; install one or set BROWSER_PATH" >&2; exit 1; }
	$(THREADS) $(BIN)/python -m assets.make.notebook_files refresh $(NOTEBOOKS)

demo: export PLOTLY_RENDERER := plotly_mimetype+notebook

# tqdm.auto draws bars of text, which live on in a terminal and in HTML, and not widgets, which do
# not, where the environment has a variable whose name begins with SPYDER.
# nbval reads what a cell sends only when the cell has ended, and what does not fit the queue until
# then is lost, the message that it has ended among them: widgets send more than twice as much.
demo test: export SPYDER_TEXT_BARS := 1

bench: $(READY) ## time what should be fast, in ratios; see runs/bench and tests/benchmarks/README.md
	$(THREADS) $(BIN)/python tests/benchmarks/run.py runs/bench

REPOSITORY ?= $(shell git remote get-url origin 2>/dev/null | sed -E 's#^.*github\.com[:/]##; s#\.git$$##')

badges: $(READY) ## put Binder's badge on README and notebooks: of origin, or REPOSITORY=owner/name
	$(BIN)/python -m assets.make.notebook_files badge --repository '$(REPOSITORY)' README.md $(NOTEBOOKS)

pocket: $(READY) ## rebuild everything in assets/: sprites, CLIP, YOLO, teacher and arms (hours)
	$(BIN)/python -m assets.make.build_sprites
	$(THREADS) $(BIN)/python -m assets.make.pretrain_clip
	$(THREADS) $(BIN)/python -m assets.make.train_detector
	$(THREADS) $(BIN)/python -m assets.make.validate_detector
	$(THREADS) $(BIN)/python -m assets.make.pocket_arms

clean: ## delete what the other commands made, .venv too
	rm -rf $(VENV) runs dist .ruff_cache .mypy_cache .pytest_cache
	find assets dclip_kit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
