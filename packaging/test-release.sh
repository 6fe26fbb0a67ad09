#!/usr/bin/env bash
# Two builds of the same commit, from two places at two times, give the same bytes.
#   packaging/test-release.sh [ARCH...]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export VERSION SOURCE_DATE_EPOCH
VERSION=$(git describe --tags --always --dirty)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
packaging/build.sh "$work/one" "$@" >/dev/null
mkdir "$work/elsewhere"
git ls-files -z | tar --null -T - -cf - | tar -C "$work/elsewhere" -xf -
(umask 077 && "$work/elsewhere/packaging/build.sh" "$work/two" "$@" >/dev/null)
diff "$work/one/SHA256SUMS" "$work/two/SHA256SUMS" || { echo "test-release: the two builds differ" >&2; exit 1; }
(cd "$work/one" && sha256sum --quiet -c SHA256SUMS)
cat "$work/one/SHA256SUMS"
echo "test-release: good"
