// Holds the MailerSend twin against MailerSend's own client, mailersend.
// Usage: node mailersend.test.mjs NODE_MODULES BASE_URL TOKEN HOOK_URL. Prints "ok" and exits 0, or throws.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [, , modules, base, token, hook] = process.argv;

// The client has its address built in and calls the global fetch.
const real = globalThis.fetch;
globalThis.fetch = (url, init) => {
  const to = String(url?.url ?? url);
  assert.ok(to.startsWith('https://api.mailersend.com/v1/'), to);
  return real(to.replace('https://api.mailersend.com', base), init);
};
const { MailerSend, EmailParams, Sender, Recipient, Attachment, EmailWebhook, EmailWebhookEventType } = createRequire(join(modules, 'x.js'))('mailersend');

const client = (apiKey) => new MailerSend({ apiKey });

async function fails(call, status, text) {
  let e;
  try {
    await call;
  } catch (x) {
    e = x;
  }
  assert.equal(e?.statusCode, status, `${text}: got ${e?.statusCode} ${e?.message ?? JSON.stringify(e?.body)}`);
  assert.match(e.body.message, new RegExp(text));
  return e.body.errors ?? {};
}

const c = client(token);
const from = new Sender('sender@news.example.com', 'Jürgen, Jr.');
const to = [new Recipient('one@example.org', 'One')];
const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const small = () => new EmailParams().setFrom(from).setTo(to).setSubject('Small').setText('Hello');

const full = new EmailParams()
  .setFrom(from)
  .setTo([...to, new Recipient('two@example.org')])
  .setCc([new Recipient('cc@example.org', 'Copy')])
  .setBcc([new Recipient('bcc@example.org')])
  .setReplyTo(new Sender('help@example.com', 'Help'))
  .setSubject('Grüße')
  .setHtml('<p>Hello {{name}} <img src="cid:logo"></p>')
  .setText('Hello {{name}}')
  .setAttachments([new Attachment(Buffer.from('%PDF-1.4').toString('base64'), 'a.pdf'), new Attachment(png, 'logo.png', 'inline', 'logo')])
  .setPersonalization([{ email: 'one@example.org', data: { name: 'One' } }])
  .setTags(['1', '2', '3', '4', '5'])
  .setSendAt(Math.floor(Date.now() / 1000) + 3600)
  .setInReplyTo('<parent@example.com>')
  .setReferences(['<root@example.com>', '<parent@example.com>'])
  .setHeaders([{ name: 'X-Campaign', value: 'first' }])
  .setListUnsubscribe('https://example.com/unsubscribe')
  .setPrecedenceBulk(true)
  .setSettings({ track_clicks: false, track_opens: false, track_content: true });
let r = await c.email.send(full);
assert.equal(r.statusCode, 202);
const id = r.headers['x-message-id'];
assert.match(id, /^[0-9a-f]{24}$/);
assert.ok(Number(r.headers['x-apiquota-remaining']) > 0);

// Suppressed recipients: some, and all.
r = await c.email.send(small().setCc([new Recipient('gone@example.net')]));
assert.equal(r.statusCode, 202);
assert.deepEqual(r.body.warnings.map((w) => [w.type, w.recipients.map((x) => [x.email, x.reasons])]), [['SOME_SUPPRESSED', [['gone@example.net', ['hard_bounced']]]]]);
r = await c.email.send(small().setTo([new Recipient('gone@example.net')]));
assert.equal(r.statusCode, 202);
assert.equal(r.headers['x-message-id'], undefined);
assert.equal(r.body.warnings[0].type, 'ALL_SUPPRESSED');

r = await c.email.send(small().setTo([]).setRcptTo([new Recipient('hidden@example.org')]));
assert.equal(r.statusCode, 202);

// Errors.
await fails(client('wrong').email.send(small()), 401, 'Unauthenticated');
await fails(c.email.send(small().setFrom(new Sender('a@other.example'))), 422, '#MS42207');
await fails(c.email.send(small().setTags(['1', '2', '3', '4', '5', '6'])), 422, 'tags');
await fails(c.email.send(small().setSendAt(1000)), 422, '#MS42218');
await fails(c.email.send(small().setAttachments([new Attachment('QQ==', 'virus.exe')])), 422, '#MS42210');
const errors = await fails(c.email.send(small().setTo([new Recipient('nobody')])), 422, 'email');
assert.deepEqual(Object.keys(errors), ['to.0.email']);

// Look-ups.
const quota = (await c.others.getApiQuota()).body;
assert.ok(quota.remaining < quota.quota);
const domain = (await c.email.domain.list({ limit: 10, page: 1 })).body.data[0];
assert.equal(domain.name, 'example.com');
const now = Math.floor(Date.now() / 1000);
const list = await c.email.list({ domain_id: domain.id, date_from: now - 600, date_to: now, tag: '3', limit: 100 });
assert.deepEqual(list.body.data.map((e) => e.message_id), [id, id, id, id]);
assert.equal(list.body.links.next, null);

// A webhook is saved when its URL answers the ping, which comes before there is a secret.
const wanted = (url) => new EmailWebhook().setName('bridge').setUrl(url).setDomainId(domain.id).setEnabled(true).setEvents([EmailWebhookEventType.SENT, EmailWebhookEventType.HARD_BOUNCED]);
assert.equal((await c.email.webhook.create(wanted(hook))).body.data.url, hook);
await fails(c.email.webhook.create(wanted(hook + 'x')), 422, 'ping');
console.log('ok');
