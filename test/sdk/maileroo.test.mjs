// Holds the Maileroo twin against Maileroo's own library, maileroo-sdk.
// Usage: node maileroo.test.mjs NODE_MODULES BASE_URL KEY. Prints "ok" and exits 0, or throws.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [, , modules, base, key] = process.argv;

// The library has its address built in and calls the global fetch.
const real = globalThis.fetch;
globalThis.fetch = (url, init) => {
  assert.ok(String(url).startsWith('https://smtp.maileroo.com/api/v2/'), String(url));
  return real(String(url).replace('https://smtp.maileroo.com', base), init);
};
const { MailerooClient, EmailAddress, Attachment } = await import(pathToFileURL(join(modules, 'maileroo-sdk', 'dist', 'index.js')));

const c = new MailerooClient(key);
const from = new EmailAddress('sender@example.com', 'Jürgen, Jr.');
const to = new EmailAddress('one@example.org', 'One');
const small = { from, to, subject: 'Small', plain: 'Hello' };
const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

async function fails(call, text) {
  let e;
  try {
    await call;
  } catch (x) {
    e = x;
  }
  assert.ok(e, `${text}: no error`);
  assert.match(e.message, new RegExp('The API returned an error: .*' + text));
}

const full = await c.sendBasicEmail({
  from,
  to: [to, new EmailAddress('two@example.org')],
  cc: new EmailAddress('cc@example.org'),
  bcc: [new EmailAddress('hidden@example.net')],
  reply_to: [new EmailAddress('a@example.com'), new EmailAddress('b@example.com', 'B')],
  subject: 'Grüße',
  html: '<p>Hello <img src="cid:logo.png"></p>',
  plain: 'plain',
  tracking: false,
  tags: { order: 7, vip: true, campaign: 'autumn' },
  headers: { 'X-Campaign': 'autumn', 'List-Unsubscribe': '<https://example.com/u>' },
  attachments: [Attachment.fromContent('a.txt', 'hello'), Attachment.fromContent('logo.png', png, 'image/png', true, true)],
  scheduled_at: new Date(Date.now() + 86400e3),
  reference_id: 'C843204E3AF03193BD14F339',
});
assert.equal(full, 'c843204e3af03193bd14f339');
assert.match(await c.sendBasicEmail(small), /^[0-9a-f]{24}$/);
assert.match(await c.sendBasicEmail({ ...small, plain: null, html: '<p>x</p>' }), /^[0-9a-f]{24}$/);
assert.match(await c.sendTemplatedEmail({ from, to, subject: 'T', template_id: 12, template_data: { name: 'One', list: [{ a: 1 }] } }), /^[0-9a-f]{24}$/);
const ids = await c.sendBulkEmails({
  subject: 'Bulk',
  html: '<p>{{ name }}</p>',
  messages: [
    { from, to, template_data: { name: 'One' }, reference_id: '000000000000000000000001' },
    { from, to: [new EmailAddress('two@example.org')], template_data: {} },
  ],
});
assert.equal(ids.length, 2);
assert.equal(ids[0], '000000000000000000000001');

const list = await c.getScheduledEmails(1, 20);
assert.deepEqual(list.results.map((m) => m.reference_id), [full]);
assert.equal(await c.deleteScheduledEmail(full), true);
assert.deepEqual((await c.getScheduledEmails()).results, []);

await fails(new MailerooClient('wrong').sendBasicEmail(small), 'X-API-KEY');
await fails(new MailerooClient('wrong').getScheduledEmails(), 'X-API-KEY');
await fails(c.sendBasicEmail({ ...small, from: new EmailAddress('sender@example.net') }), 'linked domain');
await fails(c.sendBasicEmail({ ...small, plain: '' }), 'html or plain');
await fails(c.sendBasicEmail({ ...small, scheduled_at: new Date(Date.now() + 22 * 86400e3) }), '21 days');
await fails(c.deleteScheduledEmail(full), 'not found');
console.log('ok');
