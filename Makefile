# Every verb of the kit. `make help` lists them; `make export deploy` is the whole way from nothing to a live recommendation.

DOMAIN ?= ecommerce
DATA ?= data
VAR ?= var
PRECISION ?= int8
# ensemble or fused, and onnxruntime or openvino; empty: as the domain's YAML says (docs/serving.md).
SERVING ?=
ENGINE ?=
HOST ?= 127.0.0.1
GRPC_PORT ?= 8001
HTTP_PORT ?= 8000
METRICS_PORT ?= 8002
TEXT ?= I want to buy a blue shirt
HISTORY ?=
K ?= 10
RELEASE ?=
TO ?=
# Of the people whom a canary answers.
SHARE ?= 0.1
# FORCE=yes: a release goes live though it does not pass a gate.
FORCE ?=
# WATCH=no: no process beside the server that mends what breaks.
WATCH ?= yes
BEFORE ?=
AFTER ?=
# When `make follow` tunes: every so many seconds, after so many new events, or both. SINCE: see docs/continual.md.
EVERY ?=
EVENTS ?= 200
SINCE ?=
RUN ?=
# SHRINK=yes: a catalogue may lose more than half of its items, or of the people whose events are learned from.
SHRINK ?=
# REUSE=no: export makes the encoder graph anew though a release has it, or the export before kept its FP32 graph.
REUSE ?= yes
USERS ?= 8
DURATION ?= 20
# Requests a second of open-loop load, which comes after the users' and waits for no answer; empty: none.
RATE ?=
ROUNDS ?= 5
# How long `make bench` measures each contender in a round.
BENCH_SECONDS ?= 2
# WRITE=no: `make tune-serving` shows what it found and leaves the YAML alone.
WRITE ?=
# Whose feedback `make erase-feedback` takes out: a file of ids, one a line, or - to type them in; or what is older than so many days.
USER_IDS ?=
OLDER_THAN_DAYS ?=
SHOTS ?= 1,2,5,10
DRAWS ?= 5
SPLIT ?= validation
INIT_FROM ?=
# The trials of a search in all (empty: as the domain's YAML says), and the processes that run them.
TRIALS ?=
WORKERS ?= 1
TENSORBOARD_PORT ?= 6006
# The first Python of 3.10 to 3.12 on the path; 3.13 works too, but numpy is built from source for it (requirements/stub-python3.13.txt).
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null && echo $$python && break; done),python3)
# Settings of the domain's YAML to change for once: SET="training.seed=1 export.calibration_texts=64"
SET ?=

# Numpy's OpenBLAS does not know the processors from 2023 on and takes its SSE3 kernels for them: five times slower (serving/embedded.py).
OPENBLAS_CORETYPE ?= $(shell grep -qm1 avx512vl /proc/cpuinfo && echo SkylakeX || { grep -qm1 'avx2.*fma\|fma.*avx2' /proc/cpuinfo && echo Haswell; })
ifneq ($(OPENBLAS_CORETYPE),)
export OPENBLAS_CORETYPE
endif

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CONFIG := configs/$(DOMAIN).yaml
ENDPOINTS := --host $(HOST) --grpc-port $(GRPC_PORT) --http-port $(HTTP_PORT) --metrics-port $(METRICS_PORT)
# Those that were given: a server that is started again listens where it did, unless told otherwise.
told = $(if $(filter file,$(origin $(1))),,$(2) $($(1)))
TOLD_ENDPOINTS = $(call told,HOST,--host) $(call told,GRPC_PORT,--grpc-port) $(call told,HTTP_PORT,--http-port) $(call told,METRICS_PORT,--metrics-port)
# Where to ask: where this VAR's server listens, or listened last, unless told otherwise.
SERVER_URL = $(PY) -m serving url --var $(VAR) $(call told,HOST,--host) $(call told,GRPC_PORT,--grpc-port)
# People's words reach a command through the environment, unexpanded: no quote or dollar sign of theirs is read by make or by the shell.
override export TEXT := $(value TEXT)
override export HISTORY := $(value HISTORY)
$(foreach name,VAR DATA DOMAIN,$(if $(filter 1,$(words $($(name)))),,$(error $(name) must be one word, without spaces; it is '$($(name))')))
TUNE := $(PY) -m training
SERVED := $(if $(SERVING),serving.mode=$(SERVING)) $(if $(ENGINE),serving.engine=$(ENGINE))
TRITON_MODELS := $(wildcard model_repository/*/1/model.py serving/backends/*/model.py)

.DEFAULT_GOAL := help
.SUFFIXES:
# `make export deploy` means one after the other, also with -j.
.NOTPARALLEL:
.PHONY: help setup data train search tensorboard evaluate shots export catalogue deploy canary canary-verdict canary-drop rollback releases diff status logs recommend feedback erase-feedback tune follow start stop loadtest bench tune-serving test lint format lock clean running preflight tensorrt

help:  ## List the verbs
	@echo "Usage: make <verb> [VARIABLE=value …]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: DOMAIN=$(DOMAIN) DATA=$(DATA) VAR=$(VAR) PRECISION=$(PRECISION) SERVING ENGINE SET PYTHON=$(PYTHON) OPENBLAS_CORETYPE=$(OPENBLAS_CORETYPE)"
	@echo "           HOST=$(HOST) GRPC_PORT=$(GRPC_PORT) HTTP_PORT=$(HTTP_PORT) METRICS_PORT=$(METRICS_PORT) WATCH=$(WATCH)"
	@echo "           TEXT HISTORY K=$(K) RELEASE TO BEFORE AFTER FORCE SHARE=$(SHARE) RUN REUSE=$(REUSE) SHRINK"
	@echo "           EVERY EVENTS=$(EVENTS) SINCE USERS=$(USERS) DURATION=$(DURATION) RATE ROUNDS=$(ROUNDS) BENCH_SECONDS=$(BENCH_SECONDS) WRITE USER_IDS OLDER_THAN_DAYS"
	@echo "           SHOTS=$(SHOTS) DRAWS=$(DRAWS) SPLIT=$(SPLIT) INIT_FROM TRIALS WORKERS=$(WORKERS) TENSORBOARD_PORT=$(TENSORBOARD_PORT)"
	@echo "What each means: README.md, the comments at the top of the Makefile, and docs/"

setup: $(INSTALLED)  ## Create the virtual environment and install everything (done by the other verbs when needed)

$(INSTALLED): pyproject.toml client/pyproject.toml $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Error: Python 3.10 to 3.13 is needed, this is %d.%d; name another with PYTHON=" % v)'
	@echo "setting up $(VENV): a few minutes the first time …"
	@# By pip, which comes last: a setup that was cut off may have left a venv without it, which a second call completes.
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e client -e '.[dev]'
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/no-deps.txt
	@if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))'; then \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/stub -r requirements/stub-python3.13.txt && \
		cp requirements/stub-python3.13.pth "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; fi
	@touch $@

# Before a run is trained: a wrong setting of what comes after the training is said at once.
preflight: setup
	@$(PY) -m preflight --config $(CONFIG) --precision $(PRECISION) $(SERVED) $(SET)

data: preflight  ## Check the dataset under DATA and show what is in it
	@$(TUNE) data --config $(CONFIG) --data $(DATA) $(SET)

train: preflight  ## Tune the instruction model: dataset to run
	@$(TUNE) train --config $(CONFIG) --data $(DATA) --var $(VAR) $(SET)

shots: setup  ## Measure tuning on few labelled instructions: SHOTS=1,2,5,10 DRAWS=5, with INIT_FROM=<run> another run's encoder too
	@$(TUNE) shots --config $(CONFIG) --data $(DATA) --var $(VAR) --shots $(SHOTS) --draws $(DRAWS) --split $(SPLIT) $(if $(INIT_FROM),--init-from $(INIT_FROM)) $(SET)

evaluate: setup  ## Report on the newest run (or RUN=folder or id) beside plain baselines: tables, plots, intervals
	@$(TUNE) evaluate --config $(CONFIG) --data $(DATA) --var $(VAR) $(if $(RUN),--run $(RUN)) $(SET)

search: setup  ## Search the settings that do best on validation (TRIALS, WORKERS); goes on where it was cut off
	@$(TUNE) search --config $(CONFIG) --data $(DATA) --var $(VAR) --workers $(WORKERS) $(if $(TRIALS),search.trials=$(TRIALS)) $(SET)

tensorboard: setup  ## Watch the curves of tunings and searches in the browser (TENSORBOARD_PORT), from this machine alone
	@mkdir -p $(VAR)/logs/tracking
	@$(VENV)/bin/tensorboard --logdir $(VAR)/logs/tracking --host 127.0.0.1 --port $(TENSORBOARD_PORT)

# Before a run is trained: what a TensorRT engine needs is said at once.
tensorrt: setup
	@$(PY) -m export.tensorrt check

export: $(if $(filter trt-%,$(PRECISION)),tensorrt) $(if $(RUN),preflight,train)  ## Make the run (or RUN=folder or id) into a verified release (PRECISION=int8|fp32|fp16|trt-fp16|trt-int8, SERVING=ensemble|fused, ENGINE=onnxruntime|openvino)
	@$(PY) -m export --config $(CONFIG) --data $(DATA) --var $(VAR) --precision $(PRECISION) $(if $(RUN),--run $(RUN)) $(if $(filter no,$(REUSE)),--no-reuse) $(SERVED) $(SET)

catalogue: setup  ## Bring new, changed and removed items of DATA, and what newer events teach, into a release, with the encoder and head that answer now (RUN, SHRINK=yes)
	@$(PY) -m export.catalogue --config $(CONFIG) --data $(DATA) --var $(VAR) $(if $(RUN),--run $(RUN)) $(if $(filter yes,$(SHRINK)),--shrink) \
		$(if $(filter file,$(origin PRECISION)),,--precision $(PRECISION)) $(SERVED) $(SET)

deploy: setup  ## Make the newest release (or RELEASE=n) live, and ask it for a recommendation
	@ls -d $(VAR)/releases/$(DOMAIN)/[1-9]* > /dev/null 2>&1 || $(MAKE) --no-print-directory export
	@$(PY) -m serving deploy --domain $(DOMAIN) --var $(VAR) $(if $(RELEASE),--release $(RELEASE)) $(ENDPOINTS) $(if $(wildcard $(CONFIG)),--config $(CONFIG)) $(if $(filter yes,$(FORCE)),--force) $(if $(filter no,$(WATCH)),--no-watch) $(SET)
	@$(MAKE) --no-print-directory recommend
	@echo
	@echo 'Ask more:  make recommend TEXT="a warm winter jacket for my son" K=5      Stop:  make stop'

canary: setup  ## Let the newest release (or RELEASE=n) answer a SHARE=0.1 of the people beside the live one, or change its share
	@$(PY) -m serving canary up --domain $(DOMAIN) --var $(VAR) $(if $(RELEASE),--release $(RELEASE)) --share $(SHARE) --config $(CONFIG) $(if $(filter yes,$(FORCE)),--force) $(SET)

canary-verdict: setup  ## Weigh errors, latency and feedback of the canary and the live release, and promote it, drop it or wait
	@$(PY) -m serving canary verdict --domain $(DOMAIN) --var $(VAR) --config $(CONFIG) $(SET)

canary-drop: setup  ## Take the canary down: the live release answers everybody again
	@$(PY) -m serving canary drop --domain $(DOMAIN) --var $(VAR)

rollback: setup  ## Let the release before answer again (or TO=n)
	@$(PY) -m serving rollback --domain $(DOMAIN) --var $(VAR) $(if $(TO),--to $(TO)) $(if $(filter no,$(WATCH)),--no-watch)

releases: setup  ## List the domain's releases: when, what changed, metrics, which one answers
	@$(PY) -m serving releases --domain $(DOMAIN) --var $(VAR)

diff: setup  ## Say in what the newest release differs from the one before (or BEFORE=n AFTER=m)
	@$(PY) -m serving diff --domain $(DOMAIN) --var $(VAR) $(if $(BEFORE),--before $(BEFORE)) $(if $(AFTER),--after $(AFTER))

status: setup  ## Say what runs, what answers, and how much memory it takes
	@$(PY) -m serving status --var $(VAR)

logs: setup  ## Show the end of the server's log
	@$(PY) -m serving logs --var $(VAR)

# What is live is left as it is, whatever `status` says of it: only where nothing is does this deploy.
running: setup
	@if test -e $(VAR)/live/$(DOMAIN)/config.pbtxt; then $(MAKE) --no-print-directory start; else $(MAKE) --no-print-directory deploy; fi

recommend: setup  ## Ask for a recommendation: TEXT="…" HISTORY="id,id" K=5
	@url=$$($(SERVER_URL)) && $(PY) -m instructrec_client --history "$$HISTORY" --k $(K) --url "$$url" --domain $(DOMAIN) -- "$$TEXT"

feedback: setup  ## Show how much feedback came in, by domain and event
	@$(PY) -m feedback --var $(VAR)

erase-feedback: setup  ## Erase the feedback of people (USER_IDS=file, or - for standard input), or what came in before the last OLDER_THAN_DAYS=90
	@$(PY) -m feedback --var $(VAR) erase $(if $(USER_IDS),--user-ids "$(USER_IDS)") $(if $(OLDER_THAN_DAYS),--older-than-days $(OLDER_THAN_DAYS))

tune: setup  ## Learn what feedback came in since the last time, as a release with another head; `make tune deploy` makes it live
	@$(PY) -m continual tune --config $(CONFIG) --var $(VAR) $(if $(SINCE),--since $(SINCE)) $(SET)

follow: setup  ## Tune and deploy as feedback comes (EVERY=seconds, EVENTS=number), until stopped
	@exec $(PY) -m continual follow --config $(CONFIG) --var $(VAR) $(if $(EVERY),--every $(EVERY)) $(if $(EVENTS),--events $(EVENTS)) $(SET)

start: setup  ## Start the server again with what is live, canaries included: after a reboot, or `make stop start` to restart
	@$(PY) -m serving start --var $(VAR) $(TOLD_ENDPOINTS) $(if $(filter no,$(WATCH)),--no-watch)

stop: setup  ## Stop the server once it has answered what is in flight
	@$(PY) -m serving stop --var $(VAR)

loadtest: running  ## Load the live service with Locust (USERS, and DURATION seconds once all have started), then at RATE requests a second (open loop) if given, and hold it against the domain's SLA
	@release=$$($(PY) -m serving live --domain $(DOMAIN) --var $(VAR)) && url=$$($(SERVER_URL)) && $(PY) -m loadtest --url "$$url" --domain $(DOMAIN) --config $(CONFIG) --users $(USERS) --duration $(DURATION) $(if $(RATE),--open-loop-rate $(RATE)) \
		--instructions "$$release/instructions.jsonl" --output-dir $(VAR)/loadtest $(SET)

bench: running  ## Measure the live service against its own encoder and a plain FastAPI service, as ratios of one run
	@release=$$($(PY) -m serving live --domain $(DOMAIN) --var $(VAR)) && url=$$($(SERVER_URL)) && $(PY) -m loadtest.benchmark --url "$$url" --domain $(DOMAIN) \
		--release "$$release" --rounds $(ROUNDS) --seconds $(BENCH_SECONDS) --output-dir $(VAR)/bench

tune-serving: setup  ## Measure how a release is served best on this machine, and write that into the domain's YAML (RELEASE, ROUNDS, WRITE=no)
	@$(PY) -m sweep --config $(CONFIG) --var $(VAR) --rounds $(ROUNDS) $(if $(RELEASE),--release $(RELEASE)) $(if $(filter no,$(WRITE)),--no-write) $(SERVED) $(SET)

test: setup  ## Run all tests, those against the real server included
	@# Three on two cores: tests of servers wait about as long as they work.
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder

lint: setup  ## Check style, docstrings and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@# Triton loads each of these on its own, with the package `steps` beside it; all are called `model`, so one run each.
	@for model in $(TRITON_MODELS); do MYPYPATH=serving $(VENV)/bin/mypy $$model || exit; done

format:  ## Put the code into its style
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

lock: setup  ## Pin every dependency anew (requirements/constraints.in says which pins are ours, and why)
	@$(PY) -m pip install --quiet uv
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --all-extras --no-emit-index-url --no-emit-package instructrec-client \
		--custom-compile-command 'make lock' -c requirements/constraints.in pyproject.toml client/pyproject.toml -o requirements/constraints.txt

clean:  ## Stop the server and remove all that was produced (VAR)
	@test ! -x $(PY) || test ! -e $(VAR)/server.json || $(PY) -m serving stop --var $(VAR)
	rm -rf "$(VAR)"
