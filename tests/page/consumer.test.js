/** The page as the consumer serves it, with a real Kafka behind it. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { launch, missing, texts, until } from "./browser.js";
import { absent, atEnd, startConsumer, startProducer } from "./consumer.js";
import { address, jars, newTopic, startKafka } from "./kafka.js";

const skip = missing(absent ?? (address ? undefined : "HERALD_TEST_KAFKA does not name a Kafka"));
const skipBroken = skip || missing(jars ? undefined : "HERALD_KAFKA_JARS does not name the folder of Kafka's jars");
const screenshots = process.env.HERALD_SCREENSHOTS ?? fileURLToPath(new URL("../../target/screenshots", import.meta.url));

let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

async function setUp(context, { kafka = address, window: look = {}, partitions, options } = {}) {
  const topic = await newTopic(context, { kafka, partitions });
  const consumer = await startConsumer(context, { topics: [topic.name], kafka, options });
  const window = await browser.newContext(look);
  atEnd(context, () => window.close());
  const complaints = [];
  window.on("weberror", (error) => complaints.push(error.error().message));
  window.on("console", (line) => line.type() === "error" && /Content Security/.test(line.text()) && complaints.push(line.text()));
  atEnd(context, () => assert.deepEqual(complaints, []));
  const open = async () => {
    const page = await window.newPage();
    await page.goto(consumer.url);
    return page;
  };
  return { topic, consumer, window, open };
}

const numbers = (from, to) => Array.from({ length: to - from }, (_, index) => `m${from + index}`);
const says = (page, id, words) => until(`${id} says ${words}`, async () => (await page.locator(id).textContent()).includes(words), 60_000);
const shows = (page, count) => until(`${count} messages are shown`, async () => (await texts(page)).length === count, 60_000);
const last = (page, text) => until(`${text} is the last`, async () => (await texts(page)).at(-1) === text, 60_000);

for (const transport of ["sse", "websocket"]) {
  test(`broadcasts are seen live over ${transport}`, { skip }, async (context) => {
    const { topic, open } = await setUp(context);
    const page = await open();
    await says(page, "#state", "Live");
    await page.locator(`[value=${transport}]`).check();
    await says(page, "#state", "Live");
    await startProducer(context, { topic: topic.name, kafka: address });
    await until("ten have come", async () => (await texts(page)).length >= 10, 60_000);
    for (const text of await texts(page)) assert.match(text, /^Hello world from dev producer - \d\d:\d\d:\d\d\t.+$/);
    assert.equal(await page.locator("#env").textContent(), `Kafka Topic: ${topic.name}`);
    assert.equal(await page.locator("#custom_header").textContent(), "Hello World Dev!");
    await says(page, "#delay-figure", "p50");
  });
}

test("a refresh shows what was there, and older messages are loaded as far back as Kafka keeps", { skip }, async (context) => {
  const { topic, open } = await setUp(context);
  await topic.publish(...numbers(0, 450));
  const page = await open();
  await last(page, "m449");
  // On a slow machine the list may be short for so long that older messages are loaded at once: there may be more than the 200.
  const shown = await texts(page);
  assert.ok(shown.length >= 200);
  assert.deepEqual(shown, numbers(450 - shown.length, 450));
  await page.reload();
  await last(page, "m449");
  await until("the beginning is reached", async () => {
    await page.locator("#scroller").evaluate((element) => (element.scrollTop = 0));
    return page.locator("#origin").isVisible();
  });
  assert.deepEqual(await texts(page), numbers(0, 450));
});

test("what is no text, too large, or deleted before it was read is shown as a gap", { skip }, async (context) => {
  const { topic, consumer, open } = await setUp(context, { options: ["--max-message-bytes", "1000"] });
  await topic.publish("m0", Buffer.from([0xff, 0xfe]), "m2");
  const page = await open();
  await last(page, "m2");
  await says(page, "#gaps", "A message that is not text was left out: partition 0, offset 1.");
  await topic.publish("x".repeat(2_000), "m4");
  await last(page, "m4");
  await says(page, "#gaps", "A message is too large to be sent here: partition 0, offset 3.");
  await consumer.kill();
  await says(page, "#state", "Disconnected");
  await topic.publish("m5", "m6", "m7");
  await topic.deleteBefore(7);
  await consumer.start();
  await last(page, "m7");
  await says(page, "#gaps", "Kafka deleted messages here before they were read: partition 0, offsets 5 to 6.");
  assert.deepEqual(await texts(page), ["m0", "m2", "m4", "m7"]);
});

test("a message with HTML in it is shown as text", { skip }, async (context) => {
  const { topic, open } = await setUp(context);
  const page = await open();
  await says(page, "#state", "Live");
  const hostile = ["<img src=x onerror=\"document.title='taken'\"><b>bold</b>", "</li></ul><script>document.title='taken'</script>", "\u202Ereversed\u0000\r\nline"];
  await topic.publish(...hostile);
  await shows(page, 3);
  assert.deepEqual(await texts(page), hostile);
  assert.equal(await page.title(), "Hello World Broadcasts");
  assert.equal(await page.locator("#messages > li *").count(), 0);
});

test("twelve tabs are all live, and lose nothing when one of them closes and when the server is killed", { skip }, async (context) => {
  const { topic, consumer, open } = await setUp(context, { partitions: 3 });
  await topic.publish(...numbers(0, 30));
  const pages = [];
  for (let count = 0; count < 12; count += 1) pages.push(await open());
  for (const page of pages) await shows(page, 30);
  assert.deepEqual(await consumer.metrics("herald_streams"), ['herald_streams{transport="sse"} 1']);
  await Promise.all([pages.shift().close(), topic.publish(...numbers(30, 60))]);
  for (const page of pages) await shows(page, 60);
  await Promise.all([consumer.kill(), topic.publish(...numbers(60, 90))]);
  await consumer.start();
  await topic.publish(...numbers(90, 120));
  for (const page of pages) {
    await shows(page, 120);
    assert.deepEqual((await texts(page)).toSorted(), numbers(0, 120).toSorted());
  }
});

test("an unreachable Kafka is shown until it is back; nothing is lost", { skip: skipBroken }, async (context) => {
  const kafka = await startKafka(context);
  const { topic, open } = await setUp(context, { kafka: kafka.address });
  await topic.publish("before");
  const page = await open();
  await last(page, "before");
  await kafka.stop();
  await page.locator("#away").waitFor({ state: "visible", timeout: 60_000 });
  await says(page, "#away", "Kafka has been unreachable since");
  await page.reload();
  await page.locator("#away").waitFor({ state: "visible", timeout: 60_000 });
  await last(page, "before"); // the consumer has it in memory
  await kafka.start();
  await page.locator("#away").waitFor({ state: "hidden", timeout: 60_000 });
  await topic.publish("after");
  await last(page, "after");
  assert.deepEqual(await texts(page), ["before", "after"]);
});

describe("pictures of the page", { skip }, () => {
  const desktop = { viewport: { width: 1200, height: 760 } };
  const looks = {
    light: { ...desktop, colorScheme: "light" },
    dark: { ...desktop, colorScheme: "dark" },
    phone: { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
  };
  for (const [name, look] of Object.entries(looks)) {
    test(`${name}.png`, async (context) => {
      const { topic, open } = await setUp(context, { window: look });
      await startProducer(context, { topic: topic.name, kafka: address });
      const page = await open();
      await until("some have come", async () => (await texts(page)).length >= 20, 60_000);
      await topic.publish(Buffer.from([0xff]), "<b>not bold</b>");
      await until("more have come", async () => (await texts(page)).length >= 30, 60_000);
      await says(page, "#delay-figure", "p50");
      mkdirSync(screenshots, { recursive: true });
      await page.screenshot({ path: join(screenshots, `${name}.png`) });
    });
  }
});
