#!/usr/bin/env bash
# smtpbridge and Postfix in turns: the same load, the same far end; only ratios of one run count. Then the parts by
# themselves. It prints the table with the verdict of each target and writes it into docs/performance.md.
# Needs root and the Debian packages postfix, curl and python3.
#   PAIRS  rounds of the cases that have a target, default 3
#   OTHERS rounds of the others, default 1
#   CASES  instead of all: name:mails:bytes:sessions:latency:concurrency ...
#   PAGE   file that the table goes into, default docs/performance.md; empty: none
set -euo pipefail
cd "$(dirname "$0")/.."
for t in postfix smtp-source curl python3; do
  command -v "$t" >/dev/null || { echo "missing: $t (Debian: apt-get install --no-install-recommends postfix curl python3)" >&2; exit 2; }
done
PAIRS=${PAIRS:-3} OTHERS=${OTHERS:-1} PAGE=${PAGE-docs/performance.md}
parts=1
if [ -n "${CASES:-}" ]; then
  parts='' PAGE='' OTHERS=$PAIRS
else
  CASES='
    10KB-0ms:4000:10240:50:0ms:100     10KB-75ms:4000:10240:50:75ms:200   1MB-0ms:100:1048576:10:0ms:20
    1KB-0ms:1500:1024:50:0ms:100       1KB-75ms:1500:1024:50:75ms:200     1MB-75ms:100:1048576:50:75ms:50
    100KB-0ms:300:102400:50:0ms:100    100KB-75ms:300:102400:50:75ms:200
    10KB-1-session:300:10240:1:0ms:100    10KB-10-sessions:1000:10240:10:0ms:100    10KB-100-sessions:1500:10240:100:0ms:100'
fi
out=bench/out
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/stub" ./bench/stub
go build -o "$work/bare" ./bench/bare
order=()
one() { # side name mails bytes sessions latency concurrency file
  MSGS=$3 SIZE=$4 SESSIONS=$5 LATENCY=$6 CONC=$7 PROCS=$(($7 * 2)) ROUNDS=1 JSON=$8 \
    STUB=$work/stub BARE=$work/bare BRIDGE=bin/smtpbridge "bench/$1.sh" >/dev/null
}
for c in $CASES; do
  IFS=: read -r name msgs size sessions latency conc <<<"$c"
  rows=$out/$name.jsonl
  order+=("$rows")
  : > "$rows"
  case $name in
    10KB-0ms | 10KB-75ms | 1MB-0ms) rounds=$PAIRS ;;
    *) rounds=$OTHERS ;;
  esac
  for _ in $(seq "$rounds"); do
    one bridge "$name" "$msgs" "$size" "$sessions" "$latency" "$conc" "$rows"
    one postfix "$name" "$msgs" "$size" "$sessions" "$latency" "$conc" "$rows"
  done
  python3 bench/report.py case "$rows"
done
[ -n "$parts" ] || exit 0
rows=$out/accept.jsonl
: > "$rows"
for _ in $(seq "$PAIRS"); do
  ACCEPT_ONLY=1 one bridge accept 8000 10240 50 0ms 100 "$rows"
  one bare accept 8000 10240 50 0ms 100 "$rows"
done
{
  go test -run '^$' -bench 'Intake$' -benchtime 3s -count "$PAIRS" ./webhookd
  go test -run '^$' -bench 'Parse/8MB' -benchtime 1s -count "$PAIRS" ./mime
  go test -run '^$' -bench 'Translate' -benchtime 1s -count "$PAIRS" ./test/corpus
  go test -run '^$' -bench 'LargeAttachment' -benchtime 3x -count 1 ./test/corpus
} > "$out/go.txt"
python3 bench/report.py all "$out" "$PAGE" "${order[@]}"
