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

// The client tells its errors apart by class: the name says which status it saw.
async function fails(call, status, name, text) {
  let e;
  try {
    await call;
  } catch (x) {
    e = x;
  }
  assert.ok(e, `${text}: no error`);
  assert.deepEqual([e.statusCode, e.name], [status, name], e.message);
  assert.match(e.message, new RegExp(text));
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

// All fields are optional but from, to and one body; tags may be one string.
assert.equal((await c.sendEmail({ from: 'sender@example.com', to: 'one@example.org', textbody: 'Hello', tags: 'one' })).status, 'pending');

// An Idempotency-Key, which the client has no parameter for: the repeat is answered and not sent.
c.httpClient.defaults.headers.common['Idempotency-Key'] = 'key-1';
const first = await c.sendEmail(full);
assert.deepEqual(await c.sendEmail({ ...full, subject: 'Changed' }), first);
delete c.httpClient.defaults.headers.common['Idempotency-Key'];

const many = Array.from({ length: 51 }, (_, i) => `r${i}@example.org`).join(', ');
const nobody = { ...full, to: undefined };
const empty = { ...full, htmlbody: undefined, textbody: undefined };
await fails(client('wrong').sendEmail(full), 400, 'OmsError', 'Invalid API Token');
await fails(c.sendEmail({ ...full, from: 'nobody' }), 400, 'OmsError', 'not parseable');
await fails(c.sendEmail({ ...full, from: 'sender@sub.example.com' }), 403, 'UnauthorizedDomain', 'Domain');
await fails(c.sendEmail(nobody), 400, 'OmsError', '"to":.*undefined field');
await fails(c.sendEmail({ ...full, to: 'nobody' }), 400, 'OmsError', '"to":.*is invalid');
await fails(c.sendEmail({ ...full, to: 'blocked@example.org' }), 400, 'OmsError', '"to":.*contains a blocked address');
await fails(c.sendEmail({ ...full, to: many }), 400, 'OmsError', '"to":.*exceeds maximum volume');
await fails(c.sendEmail(empty), 400, 'OmsError', '"htmlbody":.*undefined field');
await fails(c.sendEmail({ ...full, attachments: [{ name: 'run.exe', content: png, content_type: 'application/octet-stream' }] }), 400, 'OmsError', '"attachments.name":.*Extension file type blocked');
await fails(c.sendEmail({ ...full, attachments: [{ name: 'a.b.pdf', content: png, content_type: 'application/pdf' }] }), 400, 'OmsError', 'attachments.name');

await fails(client('').sendEmail(full), 401, 'InvalidAPIKey', 'Missing API Token');
console.log('ok');
