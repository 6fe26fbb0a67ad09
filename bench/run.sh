#!/usr/bin/env bash
# smtpbridge and Postfix in turns, the same load, the same far end; only ratios taken in one run count.
# Needs root and the Debian packages postfix and curl. PAIRS rounds per case.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
for t in postfix smtp-source curl python3; do
  command -v "$t" >/dev/null || { echo "missing: $t (Debian: apt-get install --no-install-recommends postfix curl python3)" >&2; exit 2; }
done
PAIRS=${PAIRS:-3}
# name:messages:bytes:sessions:latency:concurrency
CASES=${CASES:-"10KB-0ms:2000:10240:50:0ms:100 10KB-75ms:2000:10240:50:75ms:100 1MB-0ms:100:1048576:10:0ms:20"}
out=bench/out
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/stub" ./bench/stub
for c in $CASES; do
  IFS=: read -r name msgs size sessions latency conc <<<"$c"
  rows=$out/$name.jsonl
  : > "$rows"
  for _ in $(seq "$PAIRS"); do
    for side in bridge postfix; do
      MSGS=$msgs SIZE=$size SESSIONS=$sessions LATENCY=$latency CONC=$conc PROCS=$((conc * 2)) ROUNDS=1 \
        JSON=$rows STUB=$work/stub BRIDGE=bin/smtpbridge "bench/$side.sh" >/dev/null
    done
  done
  python3 - "$name" "$rows" <<'PY'
import json, statistics, sys
name, rows = sys.argv[1], [json.loads(l) for l in open(sys.argv[2])]
a = [r for r in rows if r['system'] == 'smtpbridge']; b = [r for r in rows if r['system'] == 'postfix']
print(f'{name}: {len(a)} pairs')
for key, label in (('accepted_per_s', 'durable accepts/s'), ('delivered_per_s', 'delivered/s'), ('cpu_us_per_msg', 'CPU us/mail'), ('peak_pss_mb', 'peak PSS MB')):
    ratio = [x[key] / y[key] for x, y in zip(a, b) if y[key]]
    print(f'  {label:18} smtpbridge {statistics.median(r[key] for r in a):9.1f}  postfix {statistics.median(r[key] for r in b):9.1f}'
          f'  ratio {statistics.median(ratio):5.2f} ({min(ratio):.2f} .. {max(ratio):.2f})')
lost = [r for r in rows if r['delivered'] < r['msgs']]
if lost: print('  NOT ALL DELIVERED:', lost)
PY
done
