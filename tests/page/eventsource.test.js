/** The browser's own EventSource, without our client: the encoder and the drain have to satisfy it too. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { hostile } from "../clients/fixtures/hostile.js";
import { startBalancer } from "../clients/support/balancer.js";
import { launch, missing, until } from "./browser.js";
import { absent, startConsumer } from "./consumer.js";
import { address, newTopic } from "./kafka.js";

const skip = missing(absent ?? (address ? undefined : "HERALD_TEST_KAFKA does not name a Kafka"));

let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

/** A page of the consumer's origin that listens; answers what it has heard. */
async function listen(context, origin, query) {
  const page = await browser.newPage();
  context.after(() => page.close());
  await page.goto(`${origin}/config`);
  await page.evaluate((query) => {
    window.heard = { message: [], start: [], gap: [], bye: [], ids: new Set() };
    const source = new EventSource(`/events${query}`);
    for (const type of ["message", "start", "gap", "bye"]) {
      source.addEventListener(type, (event) => {
        window.heard[type].push(event.data);
        window.heard.ids.add(event.lastEventId);
      });
    }
    window.source = source;
  }, query);
  return {
    heard: (type) => page.evaluate((type) => window.heard[type], type),
    ids: () => page.evaluate(() => [...window.heard.ids]),
    isOpen: () => page.evaluate(() => window.source.readyState === EventSource.OPEN),
  };
}

test("hostile texts reach the browser's EventSource whole and forge nothing", { skip }, async (context) => {
  const topic = await newTopic(context);
  const consumer = await startConsumer(context, { topics: [topic.name], kafka: address });
  const texts = Object.values(hostile);
  await topic.publish(...texts);
  const page = await listen(context, new URL(consumer.url).origin, "?from=earliest");
  await until("all have come", async () => (await page.heard("message")).length >= texts.length);
  const heard = await page.heard("message");
  for (const [index, [rule, text]] of Object.entries(hostile).entries()) {
    assert.equal(heard[index], text.replaceAll(/\r\n|\r/g, "\n"), rule);
  }
  assert.equal(heard.length, texts.length);
  assert.deepEqual([await page.heard("gap"), await page.heard("bye")], [[], []], "no event was forged");
  const ids = await page.ids();
  assert.ok(ids.every((id) => /^[A-Za-z0-9_-]+$/.test(id)), "no id was forged");
});

test("the browser's EventSource moves to the other replica by itself when one drains, and misses nothing", { skip }, async (context) => {
  const topic = await newTopic(context);
  const start = () =>
    startConsumer(context, { topics: [topic.name], kafka: address, options: ["--drain-delay", "1s", "--drain-window", "1s"] });
  const replicas = [await start(), await start()];
  const balancer = await startBalancer(context, replicas);
  const page = await listen(context, balancer.url, "");
  await until("it has started", async () => (await page.heard("start")).length === 1);
  const texts = Array.from({ length: 40 }, (_, number) => `m${number}`);
  for (const [number, text] of texts.entries()) {
    await topic.publish(text);
    if (number === 5) replicas[0].terminate();
    await new Promise((resolve) => setTimeout(resolve, 150)); // the pace of the broadcasts, over the whole of the drain
  }
  await until("all have come", async () => (await page.heard("message")).length >= texts.length);
  assert.deepEqual(await page.heard("message"), texts);
  assert.ok((await page.heard("bye")).every((bye) => JSON.parse(bye).reason === "drain"));
  assert.ok((await page.heard("bye")).length > 0, "it received the reason");
  assert.ok(await page.isOpen());
});
