# Needs make and Python 3.11 or newer; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq
# Stamps: empty files whose age says when a step was last done.
TORCH := $(VENV)/.torch-$(TORCH_VERSION)
DEMO := $(VENV)/.installed
TEST := $(VENV)/.installed-test

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint format golden docs quality clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO) ## compile a small model and show what became of it
	@$(BIN)/python examples/demo.py

# A process for each core, one thread in each: two threads of one process gain little here.
test: lint ## check everything: style, types, imports, behaviour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(TEST) ## run the tests that make test leaves out: minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow

lint: $(TEST) ## check style, types and imports only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TEST) ## repair the style where ruff can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

golden: $(TEST) ## rewrite the expected texts in tests/golden
	$(BIN)/python -m pytest --update-golden

docs: $(DEMO) ## write the generated pages in docs/
	$(BIN)/python docs/generate.py

quality: $(DEMO) ## measure every method and ablation, hours; write docs/quality.md
	@$(BIN)/python -m bench.quality --jobs 2 --tag "$$(git rev-parse --short HEAD)"

clean: ## delete caches and build folders; the environment and out/ stay
	rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null \
		|| { echo "error: no $(PYTHON) on the PATH; name another with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11; name another with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: $(PYTHON) cannot create environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# PyTorch first and alone, so that its version is the tested one whatever else asks for it.
$(TORCH): | $(BIN)/python
	@echo "installing torch $(TORCH_VERSION) into $(VENV), a large download the first time"
	@$(PIP) torch==$(TORCH_VERSION)
	@touch $@

$(DEMO): pyproject.toml $(TORCH)
	@echo "installing qdc into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(TEST): pyproject.toml $(TORCH)
	@echo "installing qdc and the test tools into $(VENV)"
	@$(PIP) --editable '.[test]'
	@touch $(DEMO) $@
