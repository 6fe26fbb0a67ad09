# needs: swaks
# A staging system whose customers get nothing, and one that may write to testers only.
swaks --server "$HOST:$PORT" --from app@staging.example --to customer@example.net,boss@example.org \
  --header 'To: customer@example.net' --header 'Cc: copy@example.org' --header 'Bcc: hidden@example.org' --header 'Subject: 1 redirected' --body x
if swaks --server "$HOST:$PORT" --from app@fenced.example --to customer@example.net --header 'Subject: refused' --body x; then
  echo "a recipient outside allow_recipients was taken" && exit 1
fi
swaks --server "$HOST:$PORT" --from app@fenced.example --to tester@example.net,customer@example.net,dev@example.com --header 'Subject: 2 fenced' --body x
for _ in $(seq 300); do
  "$BRIDGE" trace -c "$CONFIG" customer@example.net >"$TMP/trace" && grep -q 'qa2@example.com: sent' "$TMP/trace" && break
  sleep 0.1
done
cat "$TMP/trace"
"$BRIDGE" events -c "$CONFIG" --format json --recipient boss@example.org
