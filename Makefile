# make demo: the whole pipeline in miniature. make test: linters, types and tests. Both set up .venv first.
.PHONY: setup demo test long chaos findings check format bench lock

BIN := .venv/bin
STAMP := .venv/.complete
# Nothing here needs the Hugging Face Hub: what the tests and the demo use is shipped.
export HF_HUB_OFFLINE := 1

setup: $(STAMP)

$(STAMP): cluster/requirements-cpu.txt cluster/setup.sh pyproject.toml
	@cluster/setup.sh
	@touch $@

demo: setup
	@$(BIN)/python jobs/demo.py jobs/configs/miniature/demo.yaml

test: check
	$(BIN)/pytest --cov

# The demo on recordings of one's own, a small `findings`, a synthesis that is interrupted, and answers by both ways.
long: setup
	$(BIN)/pytest -m long

# Parts of each job are killed, machines and the control service of a cluster; clusters by `ray start` and by Ray's autoscaler.
# Long, and not a part of `test`.
chaos: setup
	$(BIN)/pytest -m chaos

# The papers' comparisons in miniature: hours. The same command goes on.
findings: setup
	$(BIN)/python jobs/findings.py jobs/configs/miniature/findings.yaml

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup
	@for program in $(wildcard benchmarks/*.py); do echo "== $$program"; $(BIN)/python $$program || exit 1; done

# Versions that stand in the locks are kept where they still fit; UPGRADE=--upgrade moves all of them.
# TORCH says where torch's CPU build is found, for example TORCH="--find-links FOLDER".
UV ?= uv
TORCH ?= --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
COMPILE = $(UV) pip compile --quiet pyproject.toml $(UPGRADE) --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command "make lock"
# Their public builds are for CUDA and break transformers and vLLM beside a CPU torch.
CPU_LEAVES_OUT := torchvision torchaudio torchcodec triton

lock:
	$(COMPILE) $(TORCH) --extra cpu --extra dev $(CPU_LEAVES_OUT:%=--no-emit-package %) \
		--output-file cluster/requirements-cpu.txt
	$(COMPILE) --extra gpu --extra dev --output-file cluster/requirements-gpu.txt
