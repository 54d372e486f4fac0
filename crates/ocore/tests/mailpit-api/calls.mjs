// The calls of the npm package `mailpit-api`, unchanged, against a mail catcher. OCORE_MAIL_URL is where it is; OCORE_MAIL_HEADERS is a JSON
// object that goes along with each request. Every message in the mailbox is deleted. A line for each call; the first that differs ends it.
import assert from "node:assert/strict";
import { MailpitClient } from "mailpit-api";

const client = new MailpitClient(process.env.OCORE_MAIL_URL, { fetchOptions: { headers: JSON.parse(process.env.OCORE_MAIL_HEADERS ?? "{}") } });
const text = "%PDF-1.4 an offer";
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const offer = {
  From: { Email: "shop@example.com", Name: "Shop" },
  To: [{ Email: "ada@example.com", Name: "Ada" }],
  Cc: [{ Email: "charles@example.com" }],
  Bcc: ["grace@example.com"],
  ReplyTo: [{ Email: "sales@example.com" }],
  Subject: "An offer",
  Text: "See https://shop.example/offer",
  HTML: '<p>See <a href="https://shop.example/offer">it</a> <img src="cid:pixel"></p><script>alert(1)</script>',
  Headers: { "X-Shop": "one" },
  Tags: ["Sales"],
  Attachments: [
    { Content: btoa(text), Filename: "offer.pdf", ContentType: "application/pdf" },
    { Content: pixel, Filename: "pixel.png", ContentType: "image/png", ContentID: "pixel" },
  ],
};
const reminder = { From: { Email: "shop@example.com" }, To: [{ Email: "bob@example.com" }], Subject: "A reminder", Text: "Soon" };

let calls = 0;
async function call(name, work) {
  const answer = await work();
  calls += 1;
  console.log(`ok ${name}`);
  return answer;
}

await call("deleteMessages (all)", async () => assert.equal(await client.deleteMessages(), "ok"));
const { ID } = await call("sendMessage", () => client.sendMessage(offer));
const other = await call("sendMessage (plain)", () => client.sendMessage(reminder));

await call("listMessages", async () => {
  const list = await client.listMessages();
  assert.deepEqual([list.total, list.unread, list.count, list.messages_count, list.messages_unread, list.start], [2, 2, 2, 2, 2, 0]);
  assert.deepEqual(list.tags, ["Sales"]);
  assert.deepEqual(list.messages.map((message) => message.ID), [other.ID, ID]);
  const summary = list.messages[1];
  assert.deepEqual(summary.From, { Name: "Shop", Address: "shop@example.com" });
  assert.deepEqual(summary.To, [{ Name: "Ada", Address: "ada@example.com" }]);
  assert.deepEqual(summary.Bcc, [{ Name: "", Address: "grace@example.com" }]);
  assert.equal(summary.Attachments, 1);
  assert.ok(!Number.isNaN(Date.parse(summary.Created)) && summary.Size > 0 && summary.Snippet && summary.MessageID && !summary.Read);
  assert.equal((await client.listMessages(1, 1)).messages[0].ID, ID);
});
await call("searchMessages", async () => {
  for (const [query, count] of [["subject:offer", 1], ["to:ada from:shop", 1], ["reminder", 1], ["-subject:offer", 1], ["has:attachment", 1], ["tag:Sales", 1], ["is:unread", 2], ['"see https"', 1], ["nothing", 0]])
    assert.equal((await client.searchMessages({ query })).messages_count, count, query);
  assert.equal((await client.searchMessages({ query: "before:2001-01-01", tz: "Pacific/Auckland" })).messages_count, 0);
});
await call("waitForMessage", async () => assert.equal((await client.waitForMessage({ query: "to:bob" })).ID, other.ID));
await call("waitForMessages", async () => assert.equal((await client.waitForMessages({ count: 2, exact: true })).messages.length, 2));
const message = await call("getMessageSummary", () => client.getMessageSummary(ID));
assert.deepEqual([message.Subject, message.HTML, message.Tags, message.ReplyTo[0].Address], [offer.Subject, offer.HTML, ["Sales"], "sales@example.com"]);
assert.equal(message.Text.trim(), offer.Text);
assert.deepEqual(message.Attachments.map((file) => [file.FileName, file.ContentType, file.Size]), [["offer.pdf", "application/pdf", text.length]]);
assert.deepEqual(message.Inline.map((file) => [file.FileName, file.ContentID]), [["pixel.png", "pixel"]]);
await call("getMessageSummary (latest)", async () => assert.equal((await client.getMessageSummary()).ID, other.ID));
await call("getMessageHeaders", async () => {
  const headers = await client.getMessageHeaders(ID);
  assert.deepEqual([headers.Subject, headers["X-Shop"]], [["An offer"], ["one"]]);
});
await call("getMessageSource", async () => assert.match(await client.getMessageSource(ID), /^Subject: An offer\r$/m));
await call("getMessageAttachment", async () => {
  const blob = await client.getMessageAttachment(ID, message.Attachments[0].PartID);
  assert.deepEqual([blob.type, await blob.text()], ["application/pdf", text]);
});
await call("getAttachmentThumbnail (none is made)", () => assert.rejects(client.getAttachmentThumbnail(ID, message.Inline[0].PartID), /501|404/));
await call("checksums of an attachment", async () => {
  const digest = Buffer.from(await crypto.subtle.digest("SHA-256", Buffer.from(text))).toString("hex");
  assert.equal(message.Attachments[0].Checksums.SHA256, digest);
});
await call("htmlCheck", async () => {
  const check = await client.htmlCheck(ID);
  assert.ok(check.Total.Tests > 0 && check.Total.Nodes > 0 && check.Warnings.some((warning) => warning.Title.includes("script")));
  for (const warning of check.Warnings) assert.ok(Array.isArray(warning.Results) && warning.Score.Found > 0);
});
await call("linkCheck", async () => assert.deepEqual((await client.linkCheck(ID)).Links.map((link) => link.URL), ["https://shop.example/offer"]));
await call("spamAssassinCheck (there is none)", () => assert.rejects(client.spamAssassinCheck(ID), /400/));
await call("renderMessageHTML", async () => {
  const page = await client.renderMessageHTML(ID);
  assert.ok(page.includes("https://shop.example/offer") && page.includes("data:image/png") && !page.includes("alert(1)"));
});
await call("renderMessageText", async () => assert.equal((await client.renderMessageText(ID)).trim(), offer.Text));
await call("setReadStatus", async () => {
  assert.equal((await client.listMessages()).unread, 0, "looking at a message reads it");
  assert.equal(await client.setReadStatus({ IDs: [ID], Read: false }), "ok");
  assert.deepEqual((await client.searchMessages({ query: "is:unread" })).messages.map((unread) => unread.ID), [ID]);
  await client.setReadStatus({ Read: true, Search: "subject:offer" });
  assert.equal((await client.listMessages()).unread, 0);
  await client.setReadStatus({ Read: false });
  assert.equal((await client.listMessages()).unread, 2);
});
await call("setTags", async () => {
  assert.equal(await client.setTags({ IDs: [ID, other.ID], Tags: ["Sales", "Två ord"] }), "ok");
  assert.deepEqual(await client.getTags(), ["Sales", "Två ord"]);
});
await call("getTags", async () => assert.equal((await client.searchMessages({ query: 'tag:"Två ord"' })).messages_count, 2));
await call("renameTag", async () => {
  assert.equal(await client.renameTag("Två ord", "Two words"), "ok");
  assert.deepEqual(await client.getTags(), ["Sales", "Two words"]);
});
await call("deleteTag", async () => {
  assert.equal(await client.deleteTag("Two words"), "ok");
  assert.deepEqual(await client.getTags(), ["Sales"]);
});
await call("getInfo", async () => {
  const info = await client.getInfo();
  assert.deepEqual([info.Messages, info.Unread, info.Tags], [2, 2, { Sales: 2 }]);
  assert.ok(info.Version && info.DatabaseSize > 0 && info.RuntimeStats.Memory > 0);
});
const configuration = await call("getConfiguration", () => client.getConfiguration());
assert.equal(typeof configuration.MessageRelay.Enabled, "boolean");
await call("getChaosTriggers (there are none)", () => assert.rejects(client.getChaosTriggers(), /400/));
if (process.env.OCORE_MAIL_RELEASE_TO) {
  assert.equal(configuration.MessageRelay.Enabled, true);
  await call("releaseMessage", async () => assert.equal(await client.releaseMessage(ID, { To: [process.env.OCORE_MAIL_RELEASE_TO] }), "ok"));
  await call("releaseMessage (to a stranger)", () => assert.rejects(client.releaseMessage(ID, { To: ["stranger@example.com"] }), /403/));
}
await call("a message that is not there", () => assert.rejects(client.getMessageSummary("no-such-message"), /404/));
await call("deleteMessages", async () => {
  assert.equal(await client.deleteMessages({ IDs: [other.ID] }), "ok");
  assert.deepEqual((await client.listMessages()).messages.map((kept) => kept.ID), [ID]);
});
await call("deleteMessagesBySearch", async () => {
  assert.equal(await client.deleteMessagesBySearch({ query: "subject:offer" }), "ok");
  assert.equal((await client.listMessages()).total, 0);
});
console.log(`${calls} calls passed`);
