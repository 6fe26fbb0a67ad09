#!/usr/bin/env bash
# Builds what is released: for each architecture a static binary, a tarball and a Debian package, with man pages and
# completions, and SHA256SUMS over all. The same commit gives the same bytes, on any machine with the same Go.
#   packaging/build.sh OUT [ARCH...]      (default: amd64 arm64)
# VERSION and SOURCE_DATE_EPOCH override what git says.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0 GOFLAGS=-buildvcs=false

out=$(realpath -m "${1:?usage: packaging/build.sh OUT [ARCH...]}")
shift
archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(amd64 arm64)
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
version=${version#v}
case $version in
  [0-9]*.*) ;;
  *) version="0.0.0+git.$version" ;; # before the first tag, and a version Debian can order
esac
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What is the same for every architecture.
go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$work/native" ./cmd/smtpbridge
packaging/man.sh "$work/man"
gzip -n9 "$work"/man/*.[15]
mkdir "$work/completion"
for shell in bash zsh fish; do
  "$work/native" completion "$shell" >"$work/completion/smtpbridge.$shell"
done
gzip -n9 <CHANGELOG.md >"$work/changelog.gz"

for arch in "${archs[@]}"; do
  stage="$work/$arch"
  mkdir "$stage"
  GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$stage/smtpbridge" ./cmd/smtpbridge
  cp -r "$work/man" "$work/completion" "$work/changelog.gz" "$stage/"
  touch -d "@$SOURCE_DATE_EPOCH" "$stage"/* "$stage"/*/*
  sed -e "s|\${ARCH}|$arch|; s|\${VERSION}|$version|; s|\${STAGE}|$stage|" packaging/nfpm.yaml >"$stage/nfpm.yaml"
  go tool -modfile=packaging/tools.mod nfpm package -f "$stage/nfpm.yaml" -p deb -t "$out/smtpbridge_${version}_$arch.deb" >/dev/null

  tree="$work/tar-$arch/smtpbridge-$version"
  mkdir -p "$tree"
  cp -r "$stage/smtpbridge" "$stage/man" "$stage/completion" README.md CHANGELOG.md LICENSE bridge.toml.example docs systemd "$tree/"
  tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    -C "$work/tar-$arch" -cf - "smtpbridge-$version" | gzip -n9 >"$out/smtpbridge-$version-linux-$arch.tar.gz"
done
(cd "$out" && sha256sum -- *.deb *.tar.gz >SHA256SUMS)
ls -l "$out"
