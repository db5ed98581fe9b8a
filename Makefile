# make lists the targets; CI (.ci/run) calls the same ones.

SHELL := /bin/bash
.DEFAULT_GOAL := help

export CGO_ENABLED := 0
# What make build compiles serves vet, and the programs that tests build; what is compiled does not depend on the folder.
export GOFLAGS += -trimpath

# Everything that tests, the lab and the demo use beside Go. This is the only list.
PACKAGES := ca-certificates git gcc libc6-dev openssh-client openssh-server iproute2 busybox-static python3 \
	systemd-container debootstrap nix-bin xz-utils e2fsprogs xfsprogs btrfs-progs gpgv debian-archive-keyring binutils flex bison bc \
	zstd bzip2 lzip brotli lz4

VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
GOFLAGS_BUILD := -buildvcs=false -ldflags "-s -w -X cairn/client/cli.Version=$(VERSION)"

# The packages whose tests take longest are begun first, or the last of them would run alone. Tests wait as much as they compute, these most
# of all, so one more package is tested at once than there are processors.
LONGEST := ./tests/lab ./tests/crash ./tests/compat ./store/disk
# The race detector does not look into the interpreter of Starlark, whose values belong to one goroutine: it would take 18 times as long.
RACE := -race -gcflags=go.starlark.net/...=-race=false
GOTESTFLAGS ?=
T ?= 30s
N ?= 200
ROW ?= .*
SIZE ?= full
MIB ?= 1024
OBJECTS ?= 100000
BENCH_JSON ?= bench-$(VERSION).json

.PHONY: help deps build test demo check fuzz root crash power full compat lab bench compare load soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that tests and demo use (root; else says what is missing)
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "not installed:" $$missing; echo "as root: make deps. Tests that need them skip."; exit 0; fi; \
	policy=/usr/sbin/policy-rc.d; \
	[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' > $$policy; chmod 755 $$policy; trap "rm -f $$policy" EXIT; }; \
	apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing

build: ## build the static binary ./cairn
	go build $(GOFLAGS_BUILD) -o cairn .

test: deps ## run all tests that need no lab hosts
	CGO_ENABLED=0 go vet ./...
	go test $(GOTESTFLAGS) -vet=off -p $$(($$(nproc) + 1)) -timeout 40m $(LONGEST) ./...

demo: deps build ## two lab hosts: deploy, change, break, roll back, collect (root)
	go run ./tests/demo -cairn ./cairn

check: ## formatting, and all of make test with the race detector
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt -w" $$bad; exit 1; }
	GORACE=atexit_sleep_ms=0 $(MAKE) test CGO_ENABLED=1 GOTESTFLAGS="$(GOTESTFLAGS) $(RACE)"

fuzz: ## fuzz every decoder for T each (make fuzz T=30s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r d; do \
		for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$d/*_test.go | cut -c6-); do \
			echo "== $$d $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(T) $$d || exit 1; done; done

root: ## sandbox, builds and activation, where nothing may be skipped (root)
	CAIRN_CI=1 go test $(GOTESTFLAGS) -count=1 -timeout 15m ./daemon/... ./services/... ./store/...

crash: ## kill -9 the daemon N times under load, and at each failpoint with N/20 seeds (make crash N=200)
	CAIRN_CRASH=$(N) go test $(GOTESTFLAGS) -count=1 -v -timeout 60m -skip Power ./tests/crash

power: ## cut the power N times, in hosts with a kernel of their own, on ext4, XFS and btrfs (make power N=200)
	CAIRN_POWER=$(N) go test $(GOTESTFLAGS) -count=1 -v -timeout 120m -run Power ./tests/crash

full: ## fill the disk of a running daemon in every way (root)
	CAIRN_CI=1 go test $(GOTESTFLAGS) -count=1 -v -timeout 5m ./tests/full

compat: ## Debian's nix as the client of our daemon (root)
	CAIRN_CI=1 go test $(GOTESTFLAGS) -count=1 -timeout 20m ./tests/compat

lab: ## switch and deploy on real hosts (root)
	CAIRN_LAB=1 go test $(GOTESTFLAGS) -count=1 -timeout 30m ./tests/lab/... ./deploy/...

load: ## 200 clients at once for T, then a third of them killed; an object of MIB, and OBJECTS small ones (make load T=1m)
	CAIRN_LOAD=$(T) CAIRN_LOAD_SIZE=$(MIB) CAIRN_LOAD_PATHS=$(OBJECTS) go test $(GOTESTFLAGS) -count=1 -v -timeout 60m ./tests/load

soak: ## hostile sessions against a live daemon for T, with the race detector (make soak T=1h) (root)
	CAIRN_SOAK=$(T) CGO_ENABLED=1 go test -race $(GOTESTFLAGS) -count=1 -v -timeout 0 ./tests/soak

bench: deps ## side by side with nix, N times (make bench N=5 ROW=gc SIZE=small); results go to BENCH_JSON, too (root)
	CAIRN_BENCH=$(or $(filter-out 200,$(N)),5) CAIRN_BENCH_SIZE=$(SIZE) CAIRN_BENCH_JSON=$(abspath $(BENCH_JSON)) \
		go test $(GOTESTFLAGS) -count=1 -v -timeout 60m -run '/^($(ROW))$$' ./tests/bench
	@echo "appended to $(BENCH_JSON)"

compare: ## what became slower from one file of make bench to another (make compare OLD=a.json NEW=b.json)
	CAIRN_BENCH_COMPARE="$(abspath $(OLD)) $(abspath $(NEW))" go test -count=1 -run TestCompareFiles ./tests/bench

clean: ## remove what was built
	rm -f cairn
