# needs: swaks
swaks --server "$HOST:$TLS_PORT" -tls --auth LOGIN --auth-user crm --auth-password story-password \
  --from app@example.com --to ada@example.net --header 'Subject: by login' --body x
swaks --server "$HOST:$TLS_PORT" -tls --auth PLAIN --auth-user crm --auth-password story-password \
  --from app@example.com --to ada@example.net --header 'Subject: by plain' --body x
# A wrong password, no login at all, AUTH in clear text and a foreign From are refused.
! swaks --server "$HOST:$TLS_PORT" -tls --auth PLAIN --auth-user crm --auth-password wrong --from app@example.com --to ada@example.net
! swaks --server "$HOST:$TLS_PORT" -tls --from app@example.com --to ada@example.net
! swaks --server "$HOST:$TLS_PORT" --auth PLAIN --auth-user crm --auth-password story-password --from app@example.com --to ada@example.net
! swaks --server "$HOST:$TLS_PORT" -tls --auth PLAIN --auth-user crm --auth-password story-password --from app@example.org --to ada@example.net
