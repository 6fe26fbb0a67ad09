#!/usr/bin/env bash
# What the Containerfile makes, without a container engine: its own build command, then its COPY lines into an empty
# folder, which is entered as its USER with its ENTRYPOINT and CMD. Needs root, for chroot.
#   packaging/test-container.sh
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "test-container: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root: it enters another root directory"
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
file=packaging/Containerfile
root=$work/root
chmod 755 "$work"
mkdir "$root"

# The build stage. It leaves what it makes in /out.
build=$(sed -n '/^RUN CGO_ENABLED/,/[^\\]$/p' "$file" | sed "s#^RUN ##; s#/out#$work/out#g")
[ -n "$build" ] || fail "$file has no build command"
env VERSION=test bash -euc "$build"

# The last stage.
grep -q '^FROM scratch$' "$file" || fail "the image is not made from scratch"
while read -r _ _ args; do
  owner=0:0
  if [[ $args = --chown=* ]]; then
    owner=${args%% *}
    owner=${owner#--chown=}
    args=${args#* }
  fi
  read -r from to <<<"$args"
  [[ $from != /out/* ]] || from=$work$from
  [[ $to != */ ]] || to=$to$(basename "$from")
  mkdir -p "$(dirname "$root$to")"
  cp -r "$from" "$root$to"
  chown -R "$owner" "$root$to"
done < <(grep '^COPY --from=build ' "$file")
user=$(sed -n 's/^USER //p' "$file")
[ "${user%%:*}" != 0 ] || fail "the image runs as root"
read -r -a entry < <(sed -n 's/^ENTRYPOINT \[\(.*\)\]/\1/p' "$file" | tr -d '",')
read -r -a cmd < <(sed -n 's/^CMD \[\(.*\)\]/\1/p' "$file" | tr -d '",')
inside() { chroot --userspec="$user" "$root" "${entry[@]}" "$@"; }

[ -s "$root/etc/ssl/certs/ca-certificates.crt" ] || fail "no root certificates"
[ "$(find "$root" -type f | wc -l)" = 2 ] || fail "more than the program and the certificates: $(find "$root" -type f)"
[ "$(inside version | head -1 | grep -c test)" = 1 ] || fail "version: $(inside version)"

# The volume with the configuration, as the comment at the top mounts it.
port=$((20000 + RANDOM % 20000))
mkdir -p "$root/etc/smtpbridge"
cat >"$root/etc/smtpbridge/bridge.toml" <<EOF
hostname = "bridge.example.com"
data_dir = "/var/lib/smtpbridge"
[[listener]]
address = "127.0.0.1:$port"
[[account]]
name = "main"
provider = "sandbox"
[[route]]
senders = ["example.com"]
accounts = ["main"]
[events]
file = "stdout"
EOF
inside check
chroot --userspec="$user" "$root" "${entry[@]}" "${cmd[@]}" >"$work/events" 2>"$work/log" &
pid=$!
for _ in $(seq 300); do
  inside send --from shop@example.com --to ada@example.net --subject hello </dev/null >"$work/send" 2>&1 && break
  kill -0 "$pid" 2>/dev/null || fail "serve ended: $(cat "$work/log")"
  sleep 0.1
done
for _ in $(seq 300); do
  grep -q '"event":"delivered".*"recipient":"ada@example.net"' "$work/events" && break
  sleep 0.1
done
grep -q '"event":"delivered"' "$work/events" || fail "not delivered: $(cat "$work/send" "$work/log")"
[ "$(stat -c %u "$root/var/lib/smtpbridge/smtpbridge.db")" = "${user%%:*}" ] || fail "the database belongs to somebody else"
stop=$(sed -n 's/^STOPSIGNAL SIG//p' "$file")
kill -"$stop" "$pid"
wait "$pid" || fail "serve ended with $?: $(cat "$work/log")"
pid=
echo "test-container: good"
