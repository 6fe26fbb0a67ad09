#!/usr/bin/env bash
# Installs, uses, upgrades, removes and purges the Debian package, on a throw-away copy of this machine's file
# system (an overlay in a mount namespace), so that nothing of it is changed. Needs root and dpkg.
#   packaging/test-deb.sh [PACKAGE.deb]      (default: build one)
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "test-deb: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root: it makes a mount namespace"

if [ "${1:-}" != --inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if [ $# -gt 0 ]; then
    cp "$1" "$work/one.deb"
  else
    packaging/build.sh "$work/out" "$(go env GOARCH)" >/dev/null
    cp "$work"/out/*.deb "$work/one.deb"
  fi
  # The upgrade's package is the same with a higher version and a changed default configuration.
  dpkg-deb -R "$work/one.deb" "$work/tree"
  sed -i 's/^Version: .*/&+next/' "$work/tree/DEBIAN/control"
  echo '# changed by the package' >>"$work/tree/etc/smtpbridge/bridge.toml"
  dpkg-deb --root-owner-group -Zgzip -z1 -b "$work/tree" "$work/two.deb" >/dev/null
  unshare --mount --pid --fork --mount-proc "$0" --inside "$work"
  exit
fi

# ---- inside the namespace: a copy of / to play in ----
work=$2
mkdir "$work/over"
mount -t tmpfs tmpfs "$work/over"
mkdir "$work/over/upper" "$work/over/work" "$work/over/root"
root=$work/over/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/over/upper,workdir=$work/over/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
cp "$work/one.deb" "$work/two.deb" "$root/tmp/"
cp packaging/try-deb.sh "$root/tmp/"
exec chroot "$root" /tmp/try-deb.sh
