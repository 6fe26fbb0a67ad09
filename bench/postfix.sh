#!/usr/bin/env bash
# Runs a private Postfix as a relay between smtp-source and a local sink with a
# settable latency, and prints what it accepted and delivered a second.
#   smtp-source -> Postfix (own queue, loopback only) -> benchstub
# Nothing leaves the machine; the only processes it ends are those it started.
# The variables below are its interface. Needs root, Postfix (not running is
# fine), Go, curl and python3.
set -euo pipefail

MSGS=${MSGS:-2000}            # messages a round
SIZE=${SIZE:-10240}           # bytes of one message
SESSIONS=${SESSIONS:-50}      # parallel SMTP sessions of the source
REUSE=${REUSE:-1}             # 1: a session carries many messages
LATENCY=${LATENCY:-75ms}      # of the far end, per message
LATENCY_MAX=${LATENCY_MAX:-}  # uniform between LATENCY and this when set
CONC=${CONC:-100}             # deliveries in parallel (Postfix's own default is 20)
PROCS=${PROCS:-200}           # Postfix process limit (its own default is 100)
ROUNDS=${ROUNDS:-3}
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
PORT=${PORT:-$(free_port)}            # Postfix listens here, on 127.0.0.1
SINK_PORT=${SINK_PORT:-$(free_port)}  # the far end's SMTP port
CTL_PORT=${CTL_PORT:-$(free_port)}    # the far end's counters
TIMEOUT=${TIMEOUT:-180}       # seconds a round may take to drain
JSON=${JSON:-}                # append one JSON line a round to this file
STUB=${STUB:-}                # a built benchstub; else it is built
EXTRA_CF=${EXTRA_CF:-}        # more main.cf lines, e.g. 'in_flow_delay = 0'
SERVE=${SERVE:-}              # 1: start Postfix and the sink, print ports, wait for Ctrl-C/TERM

here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || { echo "needs root (Postfix's master starts as root)" >&2; exit 2; }
for t in postfix smtp-source curl python3; do
  command -v "$t" >/dev/null || { echo "missing: $t" >&2; exit 2; }
done

dir=$(mktemp -d "${TMPDIR:-/tmp}/pfbench.XXXXXX")
chmod 755 "$dir"
stub_pid= ; sampler_pid= ; started=
cleanup() {
  set +e
  [ -n "$sampler_pid" ] && kill "$sampler_pid" 2>/dev/null && wait "$sampler_pid" 2>/dev/null
  [ -n "$started" ] && postfix -c "$dir/etc" stop >/dev/null 2>&1
  [ -n "$stub_pid" ] && kill "$stub_pid" 2>/dev/null && wait "$stub_pid" 2>/dev/null
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ -z "$STUB" ]; then
  STUB=$dir/benchstub
  (cd "$here/.." && go build -o "$STUB" ./bench/stub)
fi

# ---- a private instance: own configuration, queue and data directory
mkdir -p "$dir/etc" "$dir/spool" "$dir/data"
chown postfix "$dir/data"
daemon_dir=$(postconf -d -h daemon_directory 2>/dev/null || echo /usr/lib/postfix/sbin)
[ -x "$daemon_dir/master" ] || daemon_dir=/usr/lib/postfix/sbin
cat > "$dir/etc/main.cf" <<CF
compatibility_level = 3.6
queue_directory = $dir/spool
data_directory = $dir/data
daemon_directory = $daemon_dir
mail_owner = postfix
setgid_group = postdrop
myhostname = pfbench.example.com
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:$SINK_PORT
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
smtp_host_lookup = native
disable_dns_lookups = yes
smtp_bind_address = 127.0.0.1
maillog_file = $dir/spool/maillog
maillog_file_prefixes = $dir
default_process_limit = $PROCS
default_destination_concurrency_limit = $CONC
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
message_size_limit = 67108864
mailbox_size_limit = 0
bounce_queue_lifetime = 1h
$EXTRA_CF
CF
cat > "$dir/etc/master.cf" <<CF
127.0.0.1:$PORT inet n - n - - smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
CF
: > "$dir/etc/dynamicmaps.cf"
postfix -c "$dir/etc" set-permissions >/dev/null 2>&1 || true
postfix -c "$dir/etc" start >"$dir/start.log" 2>&1 || { cat "$dir/start.log" "$dir/spool/maillog" >&2; exit 1; }
started=1
master_pid=
for _ in $(seq 100); do
  [ -s "$dir/spool/pid/master.pid" ] && { master_pid=$(tr -d ' ' < "$dir/spool/pid/master.pid"); break; }
  sleep 0.1
done
[ -n "$master_pid" ] || { cat "$dir/spool/maillog" >&2; exit 1; }

"$STUB" -smtp 127.0.0.1:"$SINK_PORT" -ctl 127.0.0.1:"$CTL_PORT" -latency "$LATENCY" \
  ${LATENCY_MAX:+-latency-max "$LATENCY_MAX"} >"$dir/stub.log" 2>&1 &
stub_pid=$!
for _ in $(seq 100); do curl -s "127.0.0.1:$CTL_PORT/stats" >/dev/null && break; sleep 0.05; done
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && break; sleep 0.05; done

if [ -n "$SERVE" ]; then
  echo "postfix 127.0.0.1:$PORT -> sink 127.0.0.1:$SINK_PORT; control http://127.0.0.1:$CTL_PORT/stats; master pid $master_pid"
  while :; do sleep 1; done
fi

# ---- memory and CPU of the whole process tree under Postfix's master
sample() { # prints: rss_kb pss_kb procs cpu_ticks
  python3 - "$1" <<'PY'
import os, sys
root = int(sys.argv[1])
kids, st = {}, {}
for p in filter(str.isdigit, os.listdir('/proc')):
    try:
        f = open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split()
    except OSError:
        continue
    st[int(p)] = f
    kids.setdefault(int(f[1]), []).append(int(p))
todo, tree = [root], []
while todo:
    p = todo.pop()
    tree.append(p)
    todo += kids.get(p, [])
rss = pss = ticks = n = 0
for p in tree:
    if p not in st:
        continue
    n += 1
    f = st[p]
    ticks += int(f[11]) + int(f[12]) + int(f[13]) + int(f[14])
    try:
        for line in open(f'/proc/{p}/smaps_rollup'):
            if line.startswith('Rss:'): rss += int(line.split()[1])
            elif line.startswith('Pss:'): pss += int(line.split()[1])
    except OSError:
        pass
print(rss, pss, n, ticks)
PY
}
now_ms() { date +%s%3N; }
hz=$(getconf CLK_TCK)
reuse_flag=; [ "$REUSE" = 1 ] && reuse_flag=-d

for round in $(seq "$ROUNDS"); do
  curl -s "127.0.0.1:$CTL_PORT/reset" >/dev/null
  : > "$dir/mem"
  ( while :; do sample "$master_pid" >> "$dir/mem"; sleep 1; done ) &
  sampler_pid=$!
  read -r _ _ _ cpu0 < <(sample "$master_pid")
  t0=$(now_ms)
  smtp-source $reuse_flag -s "$SESSIONS" -m "$MSGS" -l "$SIZE" \
    -f sender@example.com -t rcpt@example.net 127.0.0.1:"$PORT"
  t1=$(now_ms)
  done_n=0
  while :; do
    done_n=$(curl -s "127.0.0.1:$CTL_PORT/stats" | python3 -c 'import json,sys;print(json.load(sys.stdin)["messages"])')
    [ "$done_n" -ge "$MSGS" ] && break
    [ $(( $(now_ms) - t0 )) -gt $((TIMEOUT * 1000)) ] && break
    sleep 0.2
  done
  sample "$master_pid" >> "$dir/mem"
  read -r _ _ _ cpu1 < <(sample "$master_pid")
  kill "$sampler_pid" 2>/dev/null || true; wait "$sampler_pid" 2>/dev/null || true; sampler_pid=
  stats=$(curl -s "127.0.0.1:$CTL_PORT/stats")
  STATS=$stats JSON=$JSON python3 - "$round" "$MSGS" "$SIZE" "$SESSIONS" "$REUSE" "$LATENCY" "$CONC" "$t0" "$t1" "$cpu0" "$cpu1" "$hz" "$dir/mem" <<'PY'
import json, os, sys
rd, msgs, size, sess, reuse, lat, conc, t0, t1, c0, c1, hz, mem = sys.argv[1:]
s = json.loads(os.environ['STATS'])
rows = [list(map(int, l.split())) for l in open(mem) if len(l.split()) == 4]
n = s['messages']
acc = int(msgs) / ((int(t1) - int(t0)) / 1e3)
el = (s['last_unix_ms'] - int(t0)) / 1e3
out = dict(system='postfix', round=int(rd), msgs=int(msgs), size=int(size), sessions=int(sess), reuse=reuse == '1',
           latency=lat, conc=int(conc), accepted_per_s=round(acc, 1), delivered=n,
           delivered_per_s=round(n / el, 1) if n else 0, seconds=round(el, 2),
           cpu_us_per_msg=round((int(c1) - int(c0)) / int(hz) / int(msgs) * 1e6),
           peak_rss_mb=round(max(r[0] for r in rows) / 1024, 1), peak_pss_mb=round(max(r[1] for r in rows) / 1024, 1),
           peak_procs=max(r[2] for r in rows), peak_inflight=s['peak_inflight'], sink_connections=s['connections'])
print(' '.join(f'{k}={v}' for k, v in out.items()))
if os.environ['JSON']:
    open(os.environ['JSON'], 'a').write(json.dumps(out) + '\n')
PY
done
