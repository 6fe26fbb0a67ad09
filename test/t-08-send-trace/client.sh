# needs: python3
"$BRIDGE" check -c "$CONFIG"
"$BRIDGE" send -c "$CONFIG" --listener plain --from app@example.com --to ada@example.net --subject 'sent by the bridge' --attach "$DATA/report.pdf"
for _ in $(seq 100); do
  "$BRIDGE" trace -c "$CONFIG" ada@example.net > "$TMP/trace" && grep -q delivered "$TMP/trace" && break
  sleep 0.1
done
cat "$TMP/trace"
"$BRIDGE" queue list -c "$CONFIG"
"$BRIDGE" account list -c "$CONFIG"
"$BRIDGE" events -c "$CONFIG" --format dsn
"$BRIDGE" events -c "$CONFIG" --format json | python3 -c 'import json, sys; print(len([json.loads(l) for l in sys.stdin]), "events are JSON")'
# A sender without a route gets a text that says what to do.
! "$BRIDGE" send -c "$CONFIG" --listener plain --from app@example.org --to ada@example.net
