#!/usr/bin/env bash
# One round of bare go-smtp that throws the mail away, under the load of the others. One JSON line out.
set -euo pipefail
MSGS=${MSGS:-2000} SIZE=${SIZE:-10240} SESSIONS=${SESSIONS:-50} JSON=${JSON:-} BARE=${BARE:?the built server}
PORT=$(python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])')
"$BARE" -port "$PORT" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT
for _ in $(seq 200); do (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && break; sleep 0.05; done
t0=$(date +%s%3N)
smtp-source -d -s "$SESSIONS" -m "$MSGS" -l "$SIZE" -f sender@example.com -t rcpt@example.net 127.0.0.1:"$PORT"
t1=$(date +%s%3N)
line=$(python3 -c 'import json,sys; n,size,sess,t0,t1=map(int,sys.argv[1:]); print(json.dumps(dict(system="go-smtp",msgs=n,size=size,sessions=sess,accepted_per_s=round(n/max(t1-t0,1)*1000,1))))' "$MSGS" "$SIZE" "$SESSIONS" "$t0" "$t1")
echo "$line"
if [ -n "$JSON" ]; then echo "$line" >> "$JSON"; fi
