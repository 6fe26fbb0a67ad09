// Holds the Mandrill twin against Mailchimp's own client, @mailchimp/mailchimp_transactional.
// Usage: node mandrill.test.mjs NODE_MODULES BASE_URL KEY HOOK_URL. Prints "ok" and exits 0, or throws.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [, , modules, base, key, hook] = process.argv;
const mailchimp = createRequire(join(modules, 'x.js'))('@mailchimp/mailchimp_transactional');

function client(apiKey) {
  const c = mailchimp(apiKey);
  c.basePath = c.basePath.replace('https://mandrillapp.com', base); // keeps the client's API version
  return c;
}

// The client resolves with the AxiosError instead of throwing it.
async function fails(call, status, name) {
  const e = await call;
  assert.equal(e?.response?.status, status, `${name}: got ${e?.response?.status} ${e?.message ?? JSON.stringify(e)}`);
  assert.deepEqual([e.response.data.status, e.response.data.name], ['error', name]);
}

const c = client(key);
assert.equal(await c.users.ping(), 'PONG!');
assert.deepEqual(await c.users.ping2(), { PING: 'PONG!' });
c.setDefaultOutputFormat('json');
assert.deepEqual(await c.users.ping2(), { PING: 'PONG!' });

const png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const full = {
  from_email: 'sender@example.com', from_name: 'Jürgen',
  to: [{ email: 'one@example.org', name: 'One', type: 'to' }, { email: 'cc@example.org', type: 'cc' }, { email: 'bcc@example.org', type: 'bcc' }, { email: 'spam@example.net' }],
  subject: 'Grüße', text: 'Hello', html: '<p>Hello <img src="cid:logo"></p>',
  headers: { 'Reply-To': 'a@example.com, b@example.com', 'X-Campaign': 'first' },
  attachments: [{ type: 'application/pdf', name: 'a.pdf', content: 'JVBERi0=' }], images: [{ type: 'image/png', name: 'logo', content: png }],
  important: false, track_opens: true, track_clicks: false, auto_text: false, auto_html: false, inline_css: false, url_strip_qs: false,
  preserve_recipients: true, view_content_link: true, tracking_domain: 'click.example.com', signing_domain: 'example.com', return_path_domain: 'bounce.example.com',
  merge: false, merge_language: 'handlebars', global_merge_vars: [{ name: 'a', content: 'b' }], merge_vars: [{ rcpt: 'one@example.org', vars: [{ name: 'a', content: 'c' }] }],
  tags: ['welcome'], subaccount: 'customer', google_analytics_domains: ['example.com'], google_analytics_campaign: 'x', metadata: { order: '4711' },
  recipient_metadata: [{ rcpt: 'one@example.org', values: { user: 7 } }],
};
const answers = await c.messages.send({ message: full, async: false, ip_pool: 'Main Pool' });
assert.deepEqual(answers.map((a) => [a.email, a.status, a.reject_reason]), [
  ['one@example.org', 'sent', null], ['cc@example.org', 'sent', null], ['bcc@example.org', 'sent', null], ['spam@example.net', 'rejected', 'spam'],
]);
assert.match(answers[0]._id, /^[0-9a-f]{32}$/);
assert.equal((await c.messages.info({ id: answers[0]._id })).metadata.order, '4711');

const raw = 'X-MC-Tags: raw,two\r\nX-MC-Metadata: {"order": "4712"}\r\nX-MC-PreserveRecipients: true\r\nX-MC-Track: opens\r\n' +
  'From: Sender <sender@example.com>\r\nTo: one@example.org\r\nSubject: Raw\r\n\r\nHello\r\n';
const sent = await c.messages.sendRaw({ raw_message: raw, to: ['one@example.org', 'hidden@example.org'] });
assert.deepEqual(sent.map((a) => a.status), ['sent', 'sent']);
assert.equal((await c.messages.sendRaw({ raw_message: raw, to: ['one@example.org'], send_at: '2026-12-01 08:00:00' }))[0].status, 'scheduled');

const many = Array.from({ length: 11 }, (_, i) => ({ email: `r${i}@example.org` }));
assert.ok((await c.messages.send({ message: { ...full, to: many } })).every((a) => a.status === 'queued'));

await fails(client('wrong').messages.send({ message: full }), 401, 'Invalid_Key');
await fails(client('').users.ping2(), 500, 'ValidationError');
await fails(c.messages.send({ message: { ...full, subaccount: 'nobody' } }), 404, 'Unknown_Subaccount');
await fails(c.messages.send({ message: { ...full, tags: ['_reserved'] } }), 500, 'ValidationError');
await fails(c.messages.info({ id: 'x' }), 404, 'Unknown_Message');

const added = await c.webhooks.add({ url: hook, description: 'test', events: ['send', 'hard_bounce', 'delivered'] });
assert.equal(added.url, hook);
assert.ok(added.auth_key);
assert.equal((await c.webhooks.list()).length, 1);
console.log('ok');
