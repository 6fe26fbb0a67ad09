# Everything a developer or packager runs. `make test` is what CI calls.
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BIN := bin/smtpbridge

.PHONY: nodes bench-nodes all build test race lint demo bench fuzz crash million memory fuzz-short soak reliability clean

all: build

build: ## a static binary in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/smtpbridge

test: lint race ## everything that must hold before a change lands

race:
	$(GO) test -race -timeout 8m -p $$(($$(nproc) + 1)) ./... # some packages mostly wait

lint:
	@test -z "$$($(GO) tool gofumpt -l $$(git ls-files '*.go'))" || { echo 'gofumpt would change:'; $(GO) tool gofumpt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@if command -v shellcheck >/dev/null || [ -n "$$SMTPBRIDGE_REQUIRE_CLIENTS" ]; then \
	  shellcheck $$(git grep -lE '^#!.*sh$$') && shellcheck -s bash test/t-*/client.sh; \
	fi

demo: build ## the whole life of a few mails on this terminal
	$(BIN) demo $(DEMOFLAGS)

bench: build ## smtpbridge and Postfix in turns, see docs/performance.md
	bench/run.sh

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME
	@$(GO) list -f '{{.Dir}} {{join .TestGoFiles " "}} {{join .XTestGoFiles " "}}' ./... | while read -r dir files; do \
	  for f in $$files; do \
	    for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$dir/$$f"); do \
	      echo "== $$dir $$t"; (cd "$$dir" && $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) .) || exit 1; \
	    done; done; done

fuzz-short: ## some seconds for each group of targets, counted in inputs: the end of a time can fall into a minimisation, which fails
	@for t in smtp:FuzzSession:2000x mime:FuzzParse:3000x mime:FuzzHeaders:20000x translate:FuzzOptions:8000x providers/all:FuzzWebhooks:8000x config:FuzzParse:8000x; do \
	  n=$${t##*:}; t=$${t%:*}; \
	  $(GO) test -run '^$$' -fuzz "^$${t#*:}\$$" -fuzztime $$n -fuzzminimizetime 10x ./$${t%%:*} || exit 1; done

crash: build ## kill -9 under load, many rounds, with a ledger
	$(GO) test -count=1 -timeout 60m -run TestKill ./test -kills 200 -kill-mails 10000

nodes: build ## three nodes on one PostgreSQL: kill -9, failure of the database, a cut network
	$(GO) test -count=1 -timeout 30m -v -run 'TestNodes|TestRoles|TestMoveToPostgres|TestCutOff|TestSharedRate|TestLeaders|TestRollingUpgrade' ./test -node-mails 10000

bench-nodes: build ## one node and three on one PostgreSQL, see docs/scaling.md
	$(GO) test -count=1 -timeout 20m -v -run TestBenchNodes ./test -bench-nodes 3000

million: ## a start with 1,000,000 mails queued
	$(GO) test -count=1 -timeout 60m -v -run TestCase063 ./test -queued 1000000

memory: ## 100 sessions with 25 MiB each, in 256 MiB
	$(GO) test -count=1 -timeout 60m -v -run TestCase117 ./test -large-sessions 100 -large-size 25

SOAK ?= 30m
soak: ## constant load with faults for SOAK; nothing may grow. Draws docs/soak.svg
	$(GO) test -count=1 -timeout 0 -v -run TestSoak ./test -soak $(SOAK) -soak-svg $(CURDIR)/docs/soak.svg

reliability: ## the numbered cases of faults and attacks, one line each
	$(GO) run ./test/reliability $(if $(V),-v)

man: ## man pages of all commands and of bridge.toml in dist/man
	packaging/man.sh dist/man

deb: ## the Debian package of this machine's architecture in dist/
	packaging/build.sh dist $$($(GO) env GOARCH)

deb-test: ## install, use, upgrade and purge the package on a copy of this machine (root)
	packaging/test-deb.sh

container-test: ## what the Containerfile makes, without an engine (root)
	packaging/test-container.sh

release: ## packages, tarballs and checksums of every architecture in dist/
	packaging/build.sh dist

release-test: ## two builds give the same bytes
	packaging/test-release.sh

clean:
	rm -rf bin dist bench/out
