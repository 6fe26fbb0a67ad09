# needs: python3
python3 - <<'PY'
import os, smtplib
from email.message import EmailMessage
s = smtplib.SMTP(os.environ['HOST'], int(os.environ['PORT']))
m = EmailMessage()
m['From'] = 'Jörg Müller <app@example.com>'
m['To'] = 'Ada <ada@example.net>'
m['Cc'] = 'cc@example.net'
m['Bcc'] = 'hidden@example.net'
m['Subject'] = 'Grüße aus Köln ✓'
m.set_content('Schöne Grüße\n')
m.add_alternative('<p>Schöne Grüße <img src="cid:logo"></p>\n', subtype='html')
m.get_payload()[1].add_related(open(os.environ['DATA'] + '/logo.png', 'rb').read(), 'image', 'png', cid='<logo>')
m.add_attachment(open(os.environ['DATA'] + '/report.pdf', 'rb').read(), maintype='application', subtype='pdf', filename='Übersicht März.pdf')
s.send_message(m)
n = EmailMessage()
n['From'] = 'app@example.com'
n['To'] = 'ada@example.net'
n['Subject'] = 'second on one connection'
n.set_content('x\n')
s.send_message(n)
s.close()  # without QUIT
PY
