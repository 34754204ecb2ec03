# The commands that newcomers and CI run. Everything that is built or downloaded is below $(TARGET).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

TOOLS := compat-tests/tools
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)

# Files that `make test-deps` prepares for the tests.
export HUBLLAMA_TEST_GGUF := $(TARGET)/test-deps/SmolLM2-135M-Instruct.Q4_1.gguf
export HUBLLAMA_TEST_MINILM := $(TARGET)/test-deps/all-MiniLM-L6-v2.F16.gguf
export HUBLLAMA_TEST_PYTHON := $(TARGET)/test-deps/venv/bin/python
export HUBLLAMA_TEST_TEMPLATES := $(TARGET)/test-deps/templates
export HUBLLAMA_TEST_JAVASCRIPT := $(TARGET)/test-deps/javascript
export HUBLLAMA_TEST_GO_CLIENT := $(TARGET)/test-deps/go-client
# Results of the tests, from which docs/compatibility.md is generated.
export HUBLLAMA_TEST_FACTS := $(TARGET)/compatibility
export HUBLLAMA_TEST_NGINX := $(TARGET)/peers/nginx
# To compare with another llama-server: make bench LLAMA_SERVER=/path/to/llama-server
export LLAMA_SERVER ?= $(TARGET)/peers/llama-server

# Cargo features for a GPU: make build FEATURES=cuda
FEATURES ?=
CARGO_FEATURES := $(if $(FEATURES),--features $(FEATURES))

# Prerequisites run in order even with -j, because two cargo processes would only wait for each other.
.NOTPARALLEL:

.PHONY: help deps build demo test-deps test fmt clippy doc unit compat doctest units bench compatibility clean-demo

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

deps: ## Install the packages that the build needs (Debian, Ubuntu); does nothing if they are installed
	@$(TOOLS)/deps.sh

build: deps ## Build target/release/hubllama (FEATURES=cuda, vulkan, rocm or metal for a GPU)
	cargo build --release --locked $(CARGO_FEATURES)

demo: build ## Build, download a small model, start the daemon, ask it one question
	@$(TOOLS)/demo.sh

clean-demo: ## Remove the files of the demo
	rm -rf '$(TARGET)/demo'

test-deps: deps
	@$(TOOLS)/model.sh >/dev/null
	@$(TOOLS)/minilm.sh >/dev/null
	@$(TOOLS)/clients.sh
	@$(TOOLS)/templates.sh >/dev/null
	@$(TOOLS)/nginx.sh

test: test-deps fmt clippy doc unit compat doctest units ## Run everything that CI checks

# All checks use the release profile, so that llama.cpp is compiled only once.
fmt:
	cargo fmt --check
clippy: deps
	cargo clippy --release --locked --all-targets -- -D warnings
	cargo check --quiet --locked --manifest-path compat-tests/fuzz/Cargo.toml
doc: deps
	RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --no-deps --document-private-items
unit: deps
	cargo test --release --locked --lib
compat: test-deps
	rm -rf '$(HUBLLAMA_TEST_FACTS)'
	cargo test --release --locked --test compat -- --test-threads=1
	cargo test --release --locked --test compat -- --ignored --exact compatibility::the_document_is_what_this_run_found

compatibility: export HUBLLAMA_UPDATE_COMPATIBILITY := 1
compatibility: compat ## Run the tests with real models and clients, and write docs/compatibility.md
doctest: deps
	cargo test --release --locked --doc
units: build
	@$(TOOLS)/units.sh

bench: build test-deps ## Compare with nginx, llama-server and others, and write docs/benchmarks.md
	@$(TOOLS)/build-llama-server.sh
	cargo bench --locked --bench peers -- --write docs/benchmarks.md
