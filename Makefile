# make report   the main job on the embedded default: two small models, two tasks, five seeds, single tokens
#               -> report/index.html; at most 12 minutes on two cores
# make test     everything that must hold; .ci/run calls it
# make test-all the same, and what takes minutes more and rarely breaks (marker slow): every causal architecture, Ray, ...
# make setup    .venv alone (the others call it); made again only when settings.ini, setup.py or constraints.txt change
# make docs     the book: all notebooks as one web site in _docs, readable without network

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

# A pip or Python steered elsewhere by the environment must not miss .venv; where packages come from stays the user's choice.
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup report test test-all readme docs clean
.DEFAULT_GOAL := report

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python %d.%d found; 3.10 or newer is needed: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The word list answers Section 6 on the page; without it the page says that it is missing.
report: setup
	@$(BIN)/python -c 'import wordfreq' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,readability]' || echo "The page will say nothing of real words."
	$(BIN)/hpt run offline --out runs/offline
	$(BIN)/hpt study effects --offline --out runs/offline
	$(BIN)/hpt explore runs/offline --effects results/study-effects.pack --page index.html --out report/explorer.html
	$(BIN)/hpt report runs/offline --out report
	@echo "The report is at report/index.html"

test: setup
	$(BIN)/python tools/chapters.py --check --workers $(WORKERS)
	$(PYTEST) -m "not slow" tests

test-all: test
	$(PYTEST) -m slow tests

readme: setup
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/inventory.py

docs: setup
	@$(BIN)/python -c 'import furo, latex2mathml, myst_nb, sphinx' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python tools/book.py _docs

clean:
	rm -rf $(VENV) build dist *.egg-info _docs _proc report .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Kept: runs/ (results). Remove it by hand to compute them again."
