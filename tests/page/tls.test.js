/** The page and client.js over TLS, where Chromium uses HTTP/2. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { newCertificate } from "../clients/support/tls.js";
import { launch, missing, texts, until } from "./browser.js";
import { absent, atEnd, startConsumer } from "./consumer.js";
import { address, newTopic } from "./kafka.js";

const skip = missing(absent ?? (address ? undefined : "HERALD_TEST_KAFKA does not name a Kafka"));
const TABS = 8;

let browser;
before(async () => (browser = skip ? null : await launch(["--ignore-certificate-errors"])));
after(() => browser?.close());

/** A consumer with a certificate of its own, and its address. */
async function setUp(context) {
  const folder = mkdtempSync(join(tmpdir(), "herald-tls-"));
  atEnd(context, () => rmSync(folder, { recursive: true }));
  const topic = await newTopic(context);
  const { options } = newCertificate(folder);
  const consumer = await startConsumer(context, { topics: [topic.name], kafka: address, options });
  const window = await browser.newContext({ ignoreHTTPSErrors: true });
  atEnd(context, () => window.close());
  return { topic, window, url: consumer.url.replace("http:", "https:") };
}

test("the page is live, and shows what comes", { skip }, async (context) => {
  const { topic, window, url } = await setUp(context);
  const page = await window.newPage();
  await page.goto(url);
  const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
  assert.equal(protocol, "h2");
  await until("it is live", async () => /live/i.test(await page.locator("#state").textContent()));
  await topic.publish("hello over TLS");
  await until("the message is shown", async () => (await texts(page)).some((text) => text.includes("hello over TLS")));
});

for (const transport of ["sse", "websocket"]) {
  test(`${TABS} tabs with a stream each all receive (${transport} preferred)`, { skip }, async (context) => {
    const { topic, window, url } = await setUp(context);
    const pages = await Promise.all(Array.from({ length: TABS }, () => window.newPage()));
    for (const page of pages) {
      await page.goto(url);
      await page.evaluate(
        async ([url, transport]) => {
          const { connect } = await import(`${url}client.js`);
          window.heard = [];
          window.stream = connect({ url, transport, shared: false });
          window.stream.addEventListener("message", ({ detail }) => window.heard.push(detail.data));
        },
        [url, transport],
      );
    }
    for (const page of pages) {
      await until("it is live", () => page.evaluate(() => window.stream.state.name === "live"));
      // Set only if it is not the preferred one.
      assert.equal(await page.evaluate(() => window.stream.state.transport), undefined);
    }
    const sent = Array.from({ length: 50 }, (_, number) => `m${number}`);
    await topic.publish(...sent);
    for (const page of pages) {
      await until("all have come", async () => (await page.evaluate(() => window.heard.length)) >= sent.length);
      assert.deepEqual(await page.evaluate(() => window.heard), sent);
    }
  });
}
