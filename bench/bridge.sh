#!/usr/bin/env bash
# One round of the bridge under the load that postfix.sh gives Postfix: smtp-source -> smtpbridge
# (durable queue) -> the same far end, as an HTTP API. The same variables, one JSON line out.
set -euo pipefail
MSGS=${MSGS:-2000} SIZE=${SIZE:-10240} SESSIONS=${SESSIONS:-50} REUSE=${REUSE:-1}
LATENCY=${LATENCY:-75ms} CONC=${CONC:-100} ROUNDS=${ROUNDS:-1} TIMEOUT=${TIMEOUT:-180}
JSON=${JSON:-} STUB=${STUB:?the built stub} BRIDGE=${BRIDGE:?the built smtpbridge}
PROVIDER=${PROVIDER:-smtpeter}
ACCEPT_ONLY=${ACCEPT_ONLY:-} # 1: the account is paused, the mail stays in the queue
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
PORT=$(free_port) HTTP_PORT=$(free_port) CTL_PORT=$(free_port)
dir=$(mktemp -d "${TMPDIR:-/tmp}/sbbench.XXXXXX")
stub_pid='' bridge_pid='' sampler_pid=''
cleanup() {
  set +e
  for p in $sampler_pid $bridge_pid $stub_pid; do kill "$p" 2>/dev/null && wait "$p" 2>/dev/null; done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The far end's answer in the vendor's shape: SMTPeter's is an object of message ids, MailPace's has an id.
case $PROVIDER in
  smtpeter) body='{"stub-%d":"rcpt@example.net"}' ;;
  *) body='{"id":%d,"status":"pending"}' ;;
esac
"$STUB" -http 127.0.0.1:"$HTTP_PORT" -ctl 127.0.0.1:"$CTL_PORT" -latency "$LATENCY" -status 200 -body "$body" >"$dir/stub.log" 2>&1 &
stub_pid=$!
cat > "$dir/bridge.toml" <<TOML
hostname = "bench.example.com"
data_dir = "$dir/data"
[[listener]]
address = "127.0.0.1:$PORT"
max_connections_per_ip = 1000
max_connections = 1000
[[account]]
name = "far"
provider = "$PROVIDER"
api_key = "bench-key-not-a-secret"
base_url = "http://127.0.0.1:$HTTP_PORT"
max_concurrent = $CONC
[[route]]
senders = ["*"]
accounts = ["far"]
[webhook]
address = ""
[events]
file = "$dir/events.jsonl"
[log]
level = "warn"
TOML
"$BRIDGE" serve -c "$dir/bridge.toml" 2>"$dir/bridge.log" &
bridge_pid=$!
for _ in $(seq 200); do (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && break; sleep 0.05; done
for _ in $(seq 100); do curl -s "127.0.0.1:$CTL_PORT/stats" >/dev/null && break; sleep 0.05; done
if [ -n "$ACCEPT_ONLY" ]; then "$BRIDGE" account pause far -c "$dir/bridge.toml" >/dev/null; fi

sample() { # prints: rss_kb pss_kb cpu_ticks
  python3 - "$bridge_pid" <<'PY'
import sys
p = sys.argv[1]
f = open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split()
rss = pss = 0
for line in open(f'/proc/{p}/smaps_rollup'):
    if line.startswith('Rss:'): rss = int(line.split()[1])
    elif line.startswith('Pss:'): pss = int(line.split()[1])
print(rss, pss, int(f[11]) + int(f[12]))
PY
}
now_ms() { date +%s%3N; }
reuse_flag=''; [ "$REUSE" = 1 ] && reuse_flag=-d
for round in $(seq "$ROUNDS"); do
  curl -s "127.0.0.1:$CTL_PORT/reset" >/dev/null
  : > "$dir/mem"
  ( while :; do sample >> "$dir/mem"; sleep 1; done ) 2>/dev/null &
  sampler_pid=$!
  read -r _ pss0 cpu0 < <(sample)
  t0=$(now_ms)
  smtp-source $reuse_flag -s "$SESSIONS" -m "$MSGS" -l "$SIZE" -f sender@example.com -t rcpt@example.net 127.0.0.1:"$PORT"
  t1=$(now_ms)
  while [ -z "$ACCEPT_ONLY" ]; do
    n=$(curl -s "127.0.0.1:$CTL_PORT/stats" | python3 -c 'import json,sys;print(json.load(sys.stdin)["messages"])')
    [ "$n" -ge "$MSGS" ] && break
    [ $(( $(now_ms) - t0 )) -gt $((TIMEOUT * 1000)) ] && break
    sleep 0.2
  done
  sample >> "$dir/mem"
  read -r _ _ cpu1 < <(sample)
  kill "$sampler_pid" 2>/dev/null || true; wait "$sampler_pid" 2>/dev/null || true; sampler_pid=''
  STATS=$(curl -s "127.0.0.1:$CTL_PORT/stats") JSON=$JSON python3 - "$round" "$MSGS" "$SIZE" "$SESSIONS" "$LATENCY" "$CONC" "$t0" "$t1" "$cpu0" "$cpu1" "$(getconf CLK_TCK)" "$dir/mem" "${ACCEPT_ONLY:-0}" "$pss0" <<'PY'
import json, os, sys
rd, msgs, size, sess, lat, conc, t0, t1, c0, c1, hz, mem, accept_only, pss0 = sys.argv[1:]
s = json.loads(os.environ['STATS'])
rows = [list(map(int, l.split())) for l in open(mem) if len(l.split()) == 3]
n = s['messages']
el = max((s['last_unix_ms'] - int(t0)) / 1e3, 1e-3) if n else 0
out = dict(system='smtpbridge queue' if accept_only == '1' else 'smtpbridge', round=int(rd), msgs=int(msgs), size=int(size), sessions=int(sess), latency=lat, conc=int(conc),
           accepted_per_s=round(int(msgs) / ((int(t1) - int(t0)) / 1e3), 1), delivered=n, delivered_per_s=round(n / el, 1) if n else 0,
           seconds=round(el, 2), cpu_us_per_msg=round((int(c1) - int(c0)) / int(hz) / int(msgs) * 1e6),
           peak_rss_mb=round(max(r[0] for r in rows) / 1024, 1), peak_pss_mb=round(max(r[1] for r in rows) / 1024, 1),
           idle_pss_mb=round(int(pss0) / 1024, 1), peak_inflight=s['peak_inflight'], duplicates=s['duplicates'])
print(' '.join(f'{k}={v}' for k, v in out.items()))
if os.environ['JSON']:
    open(os.environ['JSON'], 'a').write(json.dumps(out) + '\n')
PY
  if grep -q 'level=ERROR' "$dir/bridge.log"; then echo "the bridge logged errors:"; grep -m 3 'level=ERROR' "$dir/bridge.log"; fi >&2
done
