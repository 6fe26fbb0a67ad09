# needs: bash
ln -sf "$BRIDGE" "$TMP/sendmail"
printf 'server = "%s:%s"\ndomain = "example.com"\n' "$HOST" "$PORT" > "$TMP/sendmail.toml"
s() { "$TMP/sendmail" -C "$TMP/sendmail.toml" "$@"; }
# PHP: mail() with sendmail_path = "sendmail -t -i", -f as fifth parameter.
printf 'To: Ada <ada@example.net>\nBcc: hidden@example.net\nSubject: as php\nFrom: www@example.com\n\n.\nbody\n' | s -t -i -fwww-data@web.example.com
# cron: recipient is a bare name, the From header is made.
printf 'Subject: as cron\n\noutput of the job\n' | s -FCronDaemon -i -B8BITMIME -oem -froot root
# git send-email: recipients as arguments.
printf 'From: dev@example.com\nTo: list@example.net\nSubject: as git\n\npatch\n' | s -i list@example.net cc@example.net
# Without -i a dot ends the mail.
printf 'From: dev@example.com\nSubject: dot ends\n\nfirst\n.\nnever\n' | s ada@example.net
# -bs: SMTP on standard input.
printf 'EHLO x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<ada@example.net>\r\nDATA\r\nFrom: a@example.com\r\nSubject: session\r\n\r\nx\r\n.\r\nQUIT\r\n' | s -bs
"$BRIDGE" sendmail -bi
rc() { want=$1; shift; got=0; "$@" </dev/null || got=$?; [ "$got" = "$want" ] || { echo "exit code $got, want $want: $*"; exit 1; }; }
rc 64 s -t -y ada@example.net
rc 64 s
printf 'server = "127.0.0.1:1"\n' > "$TMP/down.toml"
rc 75 "$TMP/sendmail" -C "$TMP/down.toml" ada@example.net
printf 'serve = "x"\n' > "$TMP/bad.toml"
rc 78 "$TMP/sendmail" -C "$TMP/bad.toml" ada@example.net
# Refused for good: no route for that sender.
printf 'From: a@example.org\nSubject: x\n\nx\n' > "$TMP/refused"
got=0; s ada@example.net < "$TMP/refused" || got=$?
[ "$got" = 69 ]
