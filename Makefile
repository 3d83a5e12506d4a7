# `make help` lists the commands. Each of them makes .venv first if it has to.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
WALK := runs/walk
# Before a command: how PyTorch's threads wait, how many there are, and that freed memory is reused;
# what is set already stays.
THREADS := env $$($(BIN)/python -m dclip_kit.runtime.machine)
RUN := $(THREADS) $(BIN)/papermill --kernel python3 --cwd notebooks --no-progress-bar --log-level ERROR \
  --stdout-file -
# What `make demo FULL=1` trains on: all scenes, all layers.
WHOLE := -p scenes pocket -p uncaptioned pocket:4000 -p zero_shot pocket -p teacher_epochs 24 \
  -p train all -p further_scenes 2000 -y '{mixes: [0.3, 0.4, 0.5, 0.6, 1.0]}'
define PAGES
	$(BIN)/python -m assets.make.notebook_files static $(1)/*.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to html --CoalesceStreamsPreprocessor.enabled=True $(1)/*.ipynb
endef
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.PHONY: help setup test test-rest test-all demo walk study lab app screenshots notebooks bench package badges pocket clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with all extras and test tools (again only when pyproject.toml changes)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Expected Python 3.11 or newer, but \
	$(PYTHON) is %d.%d; run make with PYTHON=/path/to/a/newer/python3" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[all]'
	touch $@

# Notebooks, which take minutes each, come first, so that no process is left alone with one; the
# browser's tests last and by themselves, since they wait for pages that busy machines draw late; $(2)
# are their options.
define TESTS
	$(THREADS) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks tests -m '$(1)' \
	  --nbval-lax --nbval-current-env --numprocesses=auto --maxprocesses=4 --dist=loadfile \
	  --no-loadscope-reorder --ignore=tests/browser
	$(THREADS) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/browser -m '$(1)' $(2)
endef

test: $(READY) ## ruff, mypy, quick tests, three notebooks against their outputs, a widget in a browser: minutes, offline
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(call TESTS,not slow)

test-rest: $(READY) ## what `make test` leaves out: real sizes, trainings, all notebooks and pages; offline
	$(call TESTS,slow,--numprocesses=2 --dist=loadfile)

test-all: test test-rest ## everything that is checked, offline

demo: $(READY) ## train DCLIP shortly on the pocket profile and measure it (FULL=1: on all of it); see runs/demo
	mkdir -p $(DEMO)
	rm -f $(DEMO)/report.json $(DEMO)/*.ipynb $(DEMO)/*.html
	rm -rf $(DEMO)/*/checkpoints
	@echo "A demonstration: it shows that each step does its work. What the method is worth: assets/studies"
	$(RUN) -p full True -p run_dir ../$(DEMO) $(if $(FULL),$(WHOLE)) \
	  notebooks/00_quickstart.ipynb $(DEMO)/00_quickstart.ipynb
	$(call PAGES,$(DEMO))
	@$(BIN)/python -m assets.make.notebook_files table $(DEMO)/report.json
	@echo "Figures: $(CURDIR)/$(DEMO)/00_quickstart.html"

walk: $(READY) ## run all notebooks, with saved weights, into pages; see runs/walk
	mkdir -p $(WALK)
	rm -f $(WALK)/*.ipynb $(WALK)/*.html
	@set -e; for each in $(notdir $(NOTEBOOKS)); do $(RUN) --stderr-file - notebooks/$$each $(WALK)/$$each; done
	$(call PAGES,$(WALK))
	@echo "Figures: $(CURDIR)/$(WALK)/*.html"

study: $(READY) ## run what is missing of the committed studies (a day or more for all on two cores)
	$(BIN)/python -m assets.make.random_crops runs/random_crops
	@test -d runs/photo_clip || echo "Left out: studies of photographs, whose CLIP and pictures are not here"
	@set -e; for each in assets/studies/*.toml; do case $$each in \
	  */photo_*) test -d runs/photo_clip || continue;; esac; \
	  $(THREADS) $(BIN)/python -m assets.make.run_study $$each; done

lab: $(READY) ## open JupyterLab on the notebooks
	$(THREADS) $(BIN)/jupyter lab --allow-root notebooks

app: $(READY) ## open the gallery, the playground and the inspector as a page without code
	$(THREADS) $(BIN)/python -m dclip_kit app

screenshots: $(READY) ## take README's pictures of the app again (needs a Chromium)
	$(THREADS) $(BIN)/python -m assets.make.screenshots assets/readme

# The plotly renderers: `notebook` above puts plotly.js into the page once, so its HTML draws without
# a network; the PNGs stored below let code hosts show the figures, and cost a Chromium here only.
notebooks: $(READY) ## run all notebooks again in place, with pictures of their figures (needs a Chromium)
	@test -n "$$BROWSER_PATH" || command -v chromium chromium-browser google-chrome >/dev/null || { \
	  echo "Expected a Chromium to draw the figures' pictures; install one or set BROWSER_PATH" >&2; exit 1; }
	$(THREADS) $(BIN)/python -m assets.make.notebook_files refresh $(NOTEBOOKS)

demo walk: export PLOTLY_RENDERER := plotly_mimetype+notebook

# tqdm.auto draws bars of text, which live on in a terminal and in HTML, and not widgets, which do
# not, where the environment has a variable whose name begins with SPYDER.
# nbval reads what a cell sends only when the cell has ended, and what does not fit the queue until
# then is lost, the message that it has ended among them: widgets send more than twice as much.
demo walk test test-rest: export SPYDER_TEXT_BARS := 1

bench: $(READY) ## time what should be fast, in ratios; see runs/bench and tests/benchmarks/README.md
	$(THREADS) $(BIN)/python tests/benchmarks/run.py runs/bench

package: $(READY) ## build the wheel and the source distribution; see dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	@ls -l dist

REPOSITORY ?= $(shell git remote get-url origin 2>/dev/null | sed -E 's#^.*github\.com[:/]##; s#\.git$$##')

badges: $(READY) ## put Binder's badge on README and notebooks: of origin, or REPOSITORY=owner/name
	$(BIN)/python -m assets.make.notebook_files badge --repository '$(REPOSITORY)' README.md $(NOTEBOOKS)

pocket: $(READY) ## rebuild sprites, CLIPs, YOLO, teachers and arms in assets/ (about a day on two cores)
	$(BIN)/python -m assets.make.build_sprites
	$(THREADS) $(BIN)/python -m assets.make.pretrain_clip
	$(THREADS) $(BIN)/python -m assets.make.pretrain_clip --tower vit
	$(THREADS) $(BIN)/python -m assets.make.train_detector
	$(THREADS) $(BIN)/python -m assets.make.validate_detector
	$(THREADS) $(BIN)/python -m assets.make.train_denoiser
	test -d runs/studies/arms/pocket_table || rm -f assets/studies/pocket_table/*.json  # else nothing is trained
	$(THREADS) $(BIN)/python -m assets.make.run_study assets/studies/pocket_table.toml
	$(THREADS) $(BIN)/python -m assets.make.pocket_arms
	$(THREADS) $(BIN)/python -m assets.make.sds_map

clean: ## delete what the other commands made, .venv too
	rm -rf $(VENV) runs dist .ruff_cache .mypy_cache .pytest_cache
	find assets dclip_kit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
