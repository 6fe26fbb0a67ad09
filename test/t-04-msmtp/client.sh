# needs: msmtp
printf 'From: app@example.com\nTo: ada@example.net, bob@example.net\nBcc: hidden@example.net\nSubject: through msmtp\n\nK\xf6ln, undeclared 8-bit\n%s\n' "$(head -c 1500 /dev/zero | tr '\0' x)" |
  msmtp --host="$HOST" --port="$PORT" --auth=off --tls=off --from=app@example.com --read-recipients
