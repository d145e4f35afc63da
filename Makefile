# Bulkhead. `make` lists the targets; every target does its own set-up.
SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(shell uname -m)-unknown-linux-musl

.DEFAULT_GOAL := help
.PHONY: help setup build release image demo lab test lint bench clean reference manifest kubernetes-programs kubernetes-lab demo-kubernetes test-kubernetes

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

image: setup ## The container image as it is shipped, without a daemon: target/bulkhead-image.tar, an OCI archive under 60 MB
	CC_$(subst -,_,$(TARGET))=gcc $(CARGO) build -p bulkhead-agent -p bulkhead-controller -p bulkhead-cli --bins --release --target $(TARGET)
	$(CARGO) build -p bulkhead-cni --profile cni --target $(TARGET)
	install -m 755 target/$(TARGET)/cni/bulkhead-cni target/$(TARGET)/release/bulkhead-cni
	$(CARGO) build -p bulkhead-kubernetes-tests
	target/debug/bulkhead-kubernetes-lab image --binaries target/$(TARGET)/release --out target/bulkhead-image.tar \
		--revision $$(git describe --always --abbrev=40 --dirty --exclude '*')

demo: build ## Three nodes, tenants, a join without loss, an isolate, a global, a limited pod: in a minute
	target/debug/bulkhead-lab demo

lab: build ## The demo's nodes, left up for you to try things on
	target/debug/bulkhead-lab up

test: build ## Every test but those on a real Kubernetes: needs root, leaves nothing behind
	$(CARGO) test --workspace --exclude bulkhead-kubernetes-tests

kubernetes-programs: ## Build the Kubernetes of the lab, once, into a cache outside the tree
	@scripts/setup kubernetes
	tests/kubernetes/build/build.sh
	@scripts/etcd

kubernetes-lab: kubernetes-programs build ## Bulkhead on a real Kubernetes on this machine, left up for you to try things on
	$(CARGO) build -p bulkhead-kubernetes-tests
	target/debug/bulkhead-kubernetes-lab up --network bulkhead

demo-kubernetes: kubernetes-programs build ## From a cluster without a network to a joined pair of tenants, under traffic
	$(CARGO) build -p bulkhead-kubernetes-tests
	target/debug/bulkhead-kubernetes-lab demo

test-kubernetes: kubernetes-programs build ## The chart by Helm, and the suites on a real Kubernetes: needs root, leaves nothing behind
	$(CARGO) test -p bulkhead-deploy --features helm --test manifest
	$(CARGO) test -p bulkhead-kubernetes-tests --lib --bins
	tests/kubernetes/run

lint: setup ## Formatting and lints, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features bulkhead-deploy/helm -- -D warnings
	! git grep -ln 'allow(unsafe_code)' -- '*.rs' | grep -v -e '^agent/src/sys.rs$$' -e '^tests/'

bench: release ## Speed beside its baselines; writes bench/results/latest.json
	BULKHEAD_BIN_DIR=target/$(TARGET)/release target/$(TARGET)/release/bulkhead-bench

reference: ## Write what is made of the sources anew: docs/values.md, flags.md, annotations.md, drops.md
	BULKHEAD_BLESS=1 $(CARGO) test -q -p bulkhead-deploy --test reference

manifest: reference ## Write what Helm makes of the chart anew, too: deploy/bulkhead.yaml (needs Go)
	BULKHEAD_BLESS=1 $(CARGO) test -q -p bulkhead-deploy --features helm --test manifest

clean: ## Remove what was built, and what a killed lab left
	-test -x target/debug/bulkhead-lab && target/debug/bulkhead-lab sweep
	$(CARGO) clean
