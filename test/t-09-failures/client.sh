# needs: swaks
swaks --server "$HOST:$PORT" --from app@example.com --to bounce@example.net,reject@example.net,complaint@example.net,ada@example.net \
  --header 'Subject: many fates' --body x
"$BRIDGE" events -c "$CONFIG" --format json --event rejected
