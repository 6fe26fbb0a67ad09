// Holds the MailPace twin against MailPace's own client, @mailpace/mailpace.js.
// Usage: node mailpace.test.mjs NODE_MODULES BASE_URL TOKEN. Prints "ok" and exits 0, or throws.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [, , modules, base, token] = process.argv;
const MailPace = createRequire(join(modules, 'x.js'))('@mailpace/mailpace.js');

function client(key) {
  const c = new MailPace.DomainClient(key);
  // The client has its scheme built in: only the origin is replaced, the path stays the client's.
  c.httpClient.defaults.baseURL = c.httpClient.defaults.baseURL.replace('https://app.mailpace.com', base);
  return c;
}

async function fails(call, status, text) {
  let e;
  try {
    await call;
  } catch (x) {
    e = x;
  }
  assert.ok(e, `${text}: no error`);
  assert.equal(e.statusCode ?? e.code ?? e.status, status, `${text}: got ${JSON.stringify(e)} ${e.message}`);
  assert.match(`${e.message} ${JSON.stringify(e)}`, new RegExp(text));
}

const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const full = {
  from: 'Jürgen <sender@example.com>',
  to: 'One <one@example.org>, two@example.org',
  cc: 'cc@example.org',
  bcc: 'bcc@example.org',
  subject: 'Grüße ✓',
  htmlbody: '<p>Hello <img src="cid:logo"></p>',
  textbody: 'Hello',
  replyto: 'reply@example.com',
  inreplyto: '<a@example.com>',
  references: '<a@example.com> <b@example.com>',
  list_unsubscribe: '<https://example.com/u>',
  tags: ['welcome', 'two'],
  attachments: [{ name: 'logo.png', content: png, content_type: 'image/png', cid: '<logo>' }],
};
const c = client(token);
const sent = await c.sendEmail(full);
assert.equal(sent.status, 'pending');
assert.ok(Number.isInteger(sent.id), JSON.stringify(sent));
await fails(client('wrong').sendEmail(full), 400, 'Invalid API Token');
await fails(c.sendEmail({ ...full, to: 'blocked@example.org' }), 400, 'blocked');
await fails(c.sendEmail({ ...full, attachments: [{ name: 'run.exe', content: png, content_type: 'application/octet-stream' }] }), 400, 'attachment');
console.log('ok');
