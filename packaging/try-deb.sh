#!/bin/bash
# What test-deb.sh runs on the copied machine: the first hour of an administrator, and the last one.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
cd /tmp

fail() { echo "try-deb: $*" >&2; exit 1; }
has() { grep -qF -- "$2" <<<"$1" || fail "$3 lacks \"$2\":"$'\n'"$1"; }
mode() { stat -c '%a %U:%G' "$1"; }
is() { [ "$1" = "$2" ] || fail "$3: $1, want $2"; }
began=$(date +%s%N)
took() { echo "$(($(($(date +%s%N) - began)) / 1000000)) ms: $1"; }

[ ! -e /usr/bin/smtpbridge ] || fail "smtpbridge is installed on this machine already"
# This machine may lack what the package depends on; what is tested here is the package itself.
out=$(dpkg --force-depends -i one.deb 2>&1) || fail "install: $out"
has "$out" "edit the three marked lines" "the message of the installation"
took "installed"

for f in /usr/bin/smtpbridge /usr/lib/systemd/system/smtpbridge.service /usr/share/man/man1/smtpbridge-queue-list.1.gz /usr/share/man/man5/bridge.toml.5.gz \
  /usr/share/bash-completion/completions/smtpbridge /usr/share/doc/smtpbridge/bridge.toml.example /usr/share/doc/smtpbridge/docs/operations.md; do
  [ -s "$f" ] || fail "$f is missing"
done
is "$(mode /etc/smtpbridge/bridge.toml)" "640 root:smtpbridge" bridge.toml
is "$(mode /etc/smtpbridge/sendmail.toml)" "644 root:root" sendmail.toml
is "$(mode /var/lib/smtpbridge)" "700 smtpbridge:smtpbridge" /var/lib/smtpbridge
is "$(mode /var/log/smtpbridge)" "750 smtpbridge:smtpbridge" /var/log/smtpbridge
bash -n /usr/share/bash-completion/completions/smtpbridge

# Three lines; the sandbox stands for the ESP.
sed -i -e 's/senders = \["example.com"\]  .*/senders = ["shop.example"]/' -e '/^api_key_file/d' /etc/smtpbridge/bridge.toml
out=$(smtpbridge check 2>&1) || fail "check: $out"
has "$out" "is good: 1 listener, 1 account, 1 route" "check"
took "configured"

# As the unit does: its user, its directories, its command.
install -d -o smtpbridge -g smtpbridge -m 0755 /run/smtpbridge
command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/smtpbridge.service)
start() {
  # shellcheck disable=SC2086 # the words of ExecStart
  setpriv --reuid smtpbridge --regid smtpbridge --clear-groups sh -c "umask 0027; exec $command" 2>>/tmp/serve.log &
  pid=$!
  for _ in $(seq 300); do
    smtpbridge account list >/dev/null 2>&1 && [ -S /run/smtpbridge/admin.sock ] && return
    kill -0 $pid 2>/dev/null || fail "serve ended: $(cat /tmp/serve.log)"
    sleep 0.1
  done
  fail "serve does not answer: $(cat /tmp/serve.log)"
}
stop() { kill -TERM $pid; wait $pid || fail "serve ended with $?: $(cat /tmp/serve.log)"; }
start
took "running"

# An unprivileged user sends, as cron and PHP do.
rm -f /usr/sbin/sendmail # of a mail server that this machine may have
update-alternatives --quiet --install /usr/sbin/sendmail mta-sendmail /usr/lib/smtpbridge/sendmail 10
printf 'From: shop@shop.example\nTo: ada@example.net\nSubject: hello\n\ntext\n' >mail
setpriv --reuid nobody --regid nogroup --clear-groups /usr/sbin/sendmail -t -i -f shop@shop.example <mail || fail "sendmail: $?"
took "sent"
for _ in $(seq 300); do
  out=$(smtpbridge trace ada@example.net 2>&1) && grep -q delivered <<<"$out" && break
  sleep 0.1
done
has "$out" "ada@example.net: sent by main" "trace"
has "$out" "delivered" "trace"
took "delivered"
has "$(smtpbridge events --json)" '"event":"delivered"' "events"
has "$(cat /var/log/smtpbridge/events.jsonl)" '"event":"delivered"' "the event file"

# People look at the dashboard: a password, an address, and the mail is in the list.
hash=$(echo 'correct horse battery staple' | smtpbridge hash-password)
cp -a /etc/smtpbridge/bridge.toml /tmp/before.toml
printf 'address = "127.0.0.1:8026"\npassword_hash = "%s"\n' "$hash" >>/etc/smtpbridge/bridge.toml
stop
start
if command -v curl >/dev/null; then
  site=http://127.0.0.1:8026
  out=$(curl -sS "$site/mails") # nobody sees it without the password
  ! grep -q ada@example.net <<<"$out" || fail "the dashboard is open"
  curl -sS -o /dev/null -c /tmp/jar -H "Origin: $site" -d 'password=correct horse battery staple' "$site/login" || fail "log in"
  has "$(curl -sS -b /tmp/jar "$site/mails")" "ada@example.net" "the list of messages in the dashboard"
  took "seen in the dashboard"
fi
cp -a /tmp/before.toml /etc/smtpbridge/bridge.toml
stop
start

# Rotation with the file it came with.
if command -v logrotate >/dev/null; then
  logrotate -f /etc/logrotate.d/smtpbridge || fail "logrotate"
  kill -HUP $pid
  [ -s /var/log/smtpbridge/events.jsonl.1 ] || fail "the event file was not rotated"
  setpriv --reuid nobody --regid nogroup --clear-groups /usr/sbin/sendmail -t -i -f shop@shop.example <mail || fail "sendmail: $?"
  for _ in $(seq 300); do [ -s /var/log/smtpbridge/events.jsonl ] && break; sleep 0.1; done
  is "$(stat -c %U /var/log/smtpbridge/events.jsonl)" smtpbridge "owner of the new event file"
fi
stop

# An upgrade keeps the edited configuration, what is queued, and who owns what.
before=$(sha256sum /etc/smtpbridge/bridge.toml)
out=$(dpkg --force-depends --force-confdef --force-confold -i two.deb 2>&1) || fail "upgrade: $out"
is "$(sha256sum /etc/smtpbridge/bridge.toml)" "$before" "bridge.toml after the upgrade"
is "$(mode /etc/smtpbridge/bridge.toml)" "640 root:smtpbridge" "bridge.toml after the upgrade"
start
has "$(smtpbridge trace ada@example.net)" "delivered" "trace after the upgrade"
stop

# Removed: data and configuration stay. Purged: they go, keys of the administrator do not.
touch /etc/smtpbridge/main.key
update-alternatives --quiet --remove mta-sendmail /usr/lib/smtpbridge/sendmail
out=$(dpkg -r smtpbridge 2>&1) || fail "remove: $out"
[ ! -e /usr/bin/smtpbridge ] || fail "the program is still there"
for f in /etc/smtpbridge/bridge.toml /var/lib/smtpbridge/smtpbridge.db; do
  [ -s "$f" ] || fail "the removal took $f"
done
out=$(dpkg -P smtpbridge 2>&1) || fail "purge: $out"
has "$out" "your own files in /etc/smtpbridge are kept" "the message of the purge"
for f in /etc/smtpbridge/bridge.toml /var/lib/smtpbridge /var/log/smtpbridge /etc/logrotate.d/smtpbridge; do
  [ ! -e "$f" ] || fail "$f is still there after the purge"
done
[ -e /etc/smtpbridge/main.key ] || fail "the purge took a key file"
took "upgraded, removed and purged"
echo "test-deb: good"
