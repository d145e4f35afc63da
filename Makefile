# Bulkhead. `make` lists the targets; every target does its own set-up.
SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(shell uname -m)-unknown-linux-musl

.DEFAULT_GOAL := help
.PHONY: help setup build release demo lab test lint bench clean manifest kubernetes-programs kubernetes-lab demo-kubernetes test-kubernetes

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this Debian machine, and say what
	@scripts/setup

build: setup ## Build every binary for development
	$(CARGO) build --workspace --exclude bulkhead-kubernetes-tests --bins

release: setup ## Build every binary as it is shipped: static
	CC_$(subst -,_,$(TARGET))=gcc $(CARGO) build --workspace --exclude bulkhead-cni --exclude bulkhead-kubernetes-tests --bins --release --target $(TARGET)
	$(CARGO) build -p bulkhead-cni --profile cni --target $(TARGET)
	install -m 755 target/$(TARGET)/cni/bulkhead-cni target/$(TARGET)/release/bulkhead-cni

demo: build ## Three nodes, tenants, a join without loss, an isolate, a global, a limited pod: in a minute
	target/debug/bulkhead-lab demo

lab: build ## The demo's nodes, left up for you to try things on
	target/debug/bulkhead-lab up

test: build ## Every test: needs root, leaves nothing behind
	$(CARGO) test --workspace --exclude bulkhead-kubernetes-tests --exclude bulkhead-deploy

kubernetes-programs: ## Build the Kubernetes of the lab, once, into a cache outside the tree
	@scripts/setup kubernetes
	tests/kubernetes/build/build.sh
	@scripts/etcd

kubernetes-lab: kubernetes-programs ## A real Kubernetes on this machine, left up for you to try things on
	$(CARGO) build -p bulkhead-kubernetes-tests
	target/debug/bulkhead-kubernetes-lab up

demo-kubernetes: kubernetes-programs build ## From a cluster without a network to a joined pair of tenants, under traffic
	$(CARGO) build -p bulkhead-kubernetes-tests
	target/debug/bulkhead-kubernetes-lab demo

test-kubernetes: kubernetes-programs build ## The suites on a real Kubernetes: needs root, leaves nothing behind
	$(CARGO) test -p bulkhead-deploy -p bulkhead-kubernetes-tests

lint: setup ## Formatting and lints, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	! git grep -ln 'allow(unsafe_code)' -- '*.rs' | grep -v -e '^agent/src/sys.rs$$' -e '^tests/'

bench: release ## Speed beside its baselines; writes bench/results/latest.json
	BULKHEAD_BIN_DIR=target/$(TARGET)/release target/$(TARGET)/release/bulkhead-bench

manifest: ## Write what is made of the Helm chart anew: deploy/bulkhead.yaml, docs/values.md (needs Go, for Helm)
	BULKHEAD_BLESS=1 $(CARGO) test -q -p bulkhead-deploy

clean: ## Remove what was built, and what a killed lab left
	-test -x target/debug/bulkhead-lab && target/debug/bulkhead-lab sweep
	$(CARGO) clean
