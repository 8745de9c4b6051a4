# The front door: builds its own environments in .venv/ from constraints.txt. `make help` lists it.

PYTHON ?=
HOST ?= 127.0.0.1
PORT ?= 8000
TRITON_PORT ?= 8100
ARGS ?=

export PYTHON
# ONNX Runtime, which tests also load by themselves, else tells Microsoft how it is used.
export ORT_DISABLE_TELEMETRY ?= 1
DEV := .venv/dev/bin
.DEFAULT_GOAL := help
.PHONY: help serve test check fmt train export triton bench lock audit clean env-serve env-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

serve: env-serve ## Serve the shipped encoder: PORT=8000 HOST=127.0.0.1 ARGS="..."
	@exec .venv/serve/bin/amdim serve --host $(HOST) --port $(PORT) $(ARGS)

test: env-dev ## Run the tests: ARGS="tests/serving -k batcher"
	@$(DEV)/python -m pytest $(ARGS)

check: env-dev ## Format, lint, types and import rules, nothing changed
	@$(DEV)/ruff format --check .
	@$(DEV)/ruff check .
	@$(DEV)/mypy --strict
	@$(DEV)/lint-imports

fmt: env-dev ## Format, and fix what lint can fix
	@$(DEV)/ruff check --fix --quiet . || true
	@$(DEV)/ruff format .

train: given-CONFIG env-dev ## Train an encoder: CONFIG=training/configs/x.toml
	@exec $(DEV)/amdim train $(CONFIG) $(ARGS)

export: given-CKPT env-dev ## Export a checkpoint: CKPT=runs/x TO=model_repository ARGS="--fit-on IMAGES"
	@exec $(DEV)/amdim export $(CKPT) --to $(or $(TO),model_repository) $(ARGS)

triton: ## Serve model_repository with a real Triton: TRITON_PORT=8100 (HTTP, then gRPC, metrics)
	@bash export/triton_server/build.sh
	@exec .venv/triton/bin/python export/triton_server/run.py $(or $(REPO),model_repository) --port $(TRITON_PORT)

bench: env-dev ## Print every benchmark's table
	@for script in benchmarks/*.py; do echo "== $$script"; $(DEV)/python "$$script" $(ARGS) || exit 1; done

lock: env-dev ## Resolve pyproject.toml anew and write constraints.txt
	@$(DEV)/python scripts/lock.py

audit: env-dev ## Look the pinned packages up for known vulnerabilities: ARGS=--where-reachable
	@$(DEV)/python scripts/audit.py $(ARGS)

clean: ## Remove environments, caches and builds
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

given-%:
	@test -n "$($*)" || { echo "usage: make $(firstword $(MAKECMDGOALS)) $*=..., see make help" >&2; exit 2; }

env-serve:
	@bash scripts/build_env.sh serve

env-dev:
	@bash scripts/build_env.sh dev
