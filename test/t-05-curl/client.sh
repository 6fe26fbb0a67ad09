# needs: curl
printf 'From: app@example.com\nTo: ada@example.net\nSubject: bare line feeds\n\none\n.two\n' > "$TMP/m.eml"
curl -sS --fail "smtp://$HOST:$PORT/client.example.com" --mail-from app@example.com --mail-rcpt ada@example.net --upload-file "$TMP/m.eml"
curl -sS --fail "smtp://$HOST:$PORT/client.example.com" --mail-from app@example.com --mail-rcpt ada@example.net \
  -F '=(;type=multipart/alternative' -F '=text of curl;type=text/plain' -F '=html of <b>curl</b>;type=text/html' -F '=)' \
  -F "file=@$DATA/report.pdf;type=application/pdf;encoder=base64" \
  -H 'From: app@example.com' -H 'To: ada@example.net' -H 'Subject: multipart by curl'
