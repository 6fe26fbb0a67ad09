# needs: swaks
swaks --server "$HOST:$PORT" --from app@example.com --to ada@example.net,bob@example.net \
  --header 'Subject: hello from swaks' --body 'A line.
.a line with a dot'
swaks --server "$HOST:$PORT" --pipeline --from '<>' --to ada@example.net --header 'From: daemon@example.com' \
  --header 'Subject: null sender' --body 'pipelined'
# A client that goes away right after DATA leaves nothing behind.
swaks --server "$HOST:$PORT" --from app@example.com --to ada@example.net --header 'Subject: never' --drop-after-send DATA || true
