# Every step of everyday work; continuous integration calls the same ones. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help run test test-tools bench bench-fleet layout build lint fmt docs generate

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build and start `roadstead-hub dev` with the examples' tool servers; MODEL=local adds a small real model
	@docs/examples/run "$(MODEL)"

test: ## install what the tests need, run every check, end with "N passed, N failed"
	@tests/tools/check

test-tools: ## install what the tests need, and nothing else
	@tests/tools/install

bench: ## measure the figures of docs/benchmarks.md on release binaries (5 minutes); ARGS=engine for one table
	ROADSTEAD_PACKED=1 cargo build --release --workspace --bins
	target/release/roadstead-bench $(ARGS)

bench-fleet: ## 10,000 cluster agents and a hub in one process, as docs/benchmarks.md measures them (10 minutes, 4 GiB); ARGS="--truth sqlite"
	cargo build --release --workspace --bin roadstead-fleet
	target/release/roadstead-fleet --clusters 10000 $(ARGS)

layout: ## find out which functions run in every engine and cluster agent (needs valgrind), for the linker
	ROADSTEAD_PACKED=1 cargo build --release --workspace --bins
	target/release/roadstead-bench layout

build: ## build every binary (debug)
	cargo build --workspace --bins

lint: ## formatting, clippy and documentation, warnings denied
	@tests/tools/check lint

fmt: ## format the code
	cargo fmt --all

generate: ## make every committed generated file anew
	@tests/tools/generate

docs: ## the code's documentation, as HTML under the target folder
	cargo doc --workspace --no-deps --document-private-items
