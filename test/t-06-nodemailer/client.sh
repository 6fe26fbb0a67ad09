# needs: node node:nodemailer
node - <<'JS'
const nodemailer = require(process.env.NODE_PATH + '/nodemailer');
const t = nodemailer.createTransport({
  host: process.env.HOST, port: +process.env.TLS_PORT, pool: true, maxConnections: 1,
  auth: {user: 'crm', pass: 'story-password'}, tls: {rejectUnauthorized: false},
});
(async () => {
  await t.sendMail({
    from: '"Shop, the" <shop@example.com>', to: ['ada@example.net', 'Bob <bob@example.net>'], cc: 'cc@example.net', bcc: 'hidden@example.net',
    replyTo: ['a@example.com', 'b@example.com'], subject: 'from nodemailer ✓', text: 'text', html: '<p>html <img src="cid:logo@x"></p>',
    attachments: [{filename: 'logo.png', path: process.env.DATA + '/logo.png', cid: 'logo@x'}, {filename: 'Übersicht März.pdf', path: process.env.DATA + '/report.pdf'}],
    list: {unsubscribe: {url: 'https://example.com/u', comment: ''}},
  });
  await t.sendMail({from: 'shop@example.com', to: 'ada@example.net', subject: 'second of the pool', text: 'x'});
  t.close();
})().catch(e => { console.error(e); process.exit(1); });
JS
