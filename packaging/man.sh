#!/usr/bin/env bash
# Writes the man pages of all commands and of bridge.toml to a directory: packaging/man.sh DIR
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: packaging/man.sh DIR}")
mkdir -p "$dir"
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
go test -count=1 -run '^TestManPages$' ./cmd/smtpbridge -man "$dir" >/dev/null
go test -count=1 -run '^TestManPage$' ./config -man "$dir" >/dev/null
