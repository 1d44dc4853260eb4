import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { launch, missing, texts, until } from "./browser.js";
import { startFake } from "./fake.js";

const skip = missing();
let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

async function setUp(context, { count = 0, viewport = { width: 1000, height: 600 }, ...options } = {}) {
  const fake = await startFake(options);
  for (const data of numbers(0, count)) fake.publish(data, { timestamp: Date.now() - 60_000 });
  const window = await browser.newContext({ viewport });
  const complaints = [];
  window.on("weberror", (error) => complaints.push(error.error().message));
  window.on("console", (line) => line.type() === "error" && /Content Security/.test(line.text()) && complaints.push(line.text()));
  context.after(async () => {
    await window.close();
    await fake.close();
    assert.deepEqual(complaints, []);
  });
  const open = async (path = "") => {
    const page = await window.newPage();
    await page.goto(fake.url + path);
    return page;
  };
  return { fake, window, open };
}

const numbers = (from, to) => Array.from({ length: to - from }, (_, index) => `m${from + index}`);
const says = (page, id, words) => until(`${id} says ${words}`, async () => (await page.locator(id).textContent()).includes(words));
const shows = (page, count) => until(`${count} messages are shown`, async () => (await texts(page)).length === count);
const last = (page, text) => until(`${text} is the last`, async () => (await texts(page)).at(-1) === text);
const scrollTo = (page, top) => page.locator("#scroller").evaluate((element, top) => (element.scrollTop = top), top);
/** The message at the upper edge, and how far below it: what a reader would notice moving. */
const place = (page) =>
  page.evaluate(() => {
    const edge = document.getElementById("scroller").getBoundingClientRect().top;
    const item = [...document.querySelectorAll("#messages > li")].find((li) => li.getBoundingClientRect().bottom > edge);
    return [item.textContent, Math.round(item.getBoundingClientRect().top - edge)];
  });
const atEnd = (page) => page.locator("#scroller").evaluate((e) => e.scrollTop + e.clientHeight > e.scrollHeight - 5);

describe("the page", { skip }, () => {
  test("it is titled and named as its readers know it", async (context) => {
    const { open } = await setUp(context, { count: 2 });
    const page = await open();
    await shows(page, 2);
    assert.equal(await page.title(), "Hello World Broadcasts");
    assert.equal(await page.locator("h1#top").textContent(), "Hello World Consumer");
    assert.equal(await page.locator("h2#custom_header").textContent(), "Hello World Dev!");
    assert.equal(await page.locator("h1#env").textContent(), "Kafka Topic: dev-topic");
    await says(page, "#state", "Live");
    await says(page, "#spoken", "Live");
  });

  test("what arrives is seen at the end, and a refresh shows what was there", async (context) => {
    const { fake, open } = await setUp(context, { count: 30 });
    const page = await open();
    await shows(page, 30);
    fake.publish("new");
    await last(page, "new");
    assert.ok(await atEnd(page));
    await page.reload();
    await last(page, "new");
    assert.deepEqual(await texts(page), [...numbers(0, 30), "new"]);
  });

  test("older messages load by button and by scrolling, the scroll position stays, and the start of the topic is shown", async (context) => {
    const { open } = await setUp(context, { count: 450 });
    const page = await open();
    await shows(page, 200);
    await scrollTo(page, 150);
    const before = await place(page);
    await shows(page, 300);
    assert.deepEqual(await place(page), before);
    await page.locator("#older").focus();
    await page.keyboard.press("Enter");
    await until("the rest came", async () => {
      await scrollTo(page, 0);
      return (await texts(page)).length === 450;
    });
    assert.deepEqual(await texts(page), numbers(0, 450));
    assert.ok(await page.locator("#origin").isVisible());
    assert.ok(await page.locator("#older").isHidden());
  });

  test("messages that arrive little by little at first load nothing older", async (context) => {
    const { fake, open } = await setUp(context, { count: 450 });
    fake.burst = 15; // the list begins to scroll with the second of them
    const page = await open();
    await shows(page, 200);
    await new Promise((resolve) => setTimeout(resolve, 700));
    assert.equal((await texts(page)).length, 200);
    assert.equal(fake.polled, undefined);
  });

  test("new messages do not move a reader who scrolled up, and are counted below", async (context) => {
    const { fake, open } = await setUp(context, { count: 100 });
    const page = await open();
    await shows(page, 100);
    await scrollTo(page, 700);
    const before = await place(page);
    for (const data of numbers(100, 103)) fake.publish(data);
    await says(page, "#newest", "3 new messages");
    assert.deepEqual(await place(page), before);
    await page.locator("#newest").click();
    assert.ok(await atEnd(page));
    assert.ok(await page.locator("#newest").isHidden());
  });

  test("after thousands of messages the page holds two thousand, and the others are loaded again", async (context) => {
    const { fake, open } = await setUp(context, { count: 10 });
    const page = await open();
    await shows(page, 10);
    for (const data of numbers(10, 4_500)) fake.publish(data);
    await last(page, "m4499");
    await shows(page, 2_000);
    assert.deepEqual(await texts(page), numbers(2_500, 4_500));
    for (const first of [2_400, 2_300]) {
      await scrollTo(page, 0);
      await until("older ones came", async () => (await texts(page))[0] === `m${first}`);
      await scrollTo(page, 2_000);
    }
    // They took the room of the newest, which are fetched when they are asked for.
    assert.deepEqual(await texts(page), numbers(2_300, 4_300));
    fake.publish("m4500");
    await says(page, "#newest", "1 new message");
    await page.locator("#newest").click();
    await last(page, "m4500");
    fake.publish("m4501");
    await last(page, "m4501");
    assert.deepEqual(await texts(page), numbers(4_401, 4_502));
  });

  test("older messages that come when the list begins elsewhere by now are loaded again", async (context) => {
    const { fake, window, open } = await setUp(context, { count: 10 });
    let answer;
    const asked = new Promise((resolve) => {
      const answered = new Promise((resolve) => (answer = resolve));
      window.route("**/messages?*", async (route) => (resolve(), await answered, route.continue()));
    });
    const page = await open();
    await shows(page, 10);
    await asked;
    for (const data of numbers(10, 2_600)) fake.publish(data);
    await last(page, "m2599");
    await shows(page, 2_000);
    answer();
    await scrollTo(page, 0);
    await until("older ones came", async () => (await texts(page))[0] === "m500");
  });

  test("a gap is marked where it is, in plain words and with its range", async (context) => {
    const { fake, open } = await setUp(context, { count: 5 });
    const page = await open();
    await shows(page, 5);
    fake.publish("", { gap: "not-utf8" });
    await says(page, "#tail", "A message that is not text was left out: partition 0, offset 5.");
    fake.publish("", { gap: "not-utf8" });
    fake.publish("behind");
    await last(page, "behind");
    const mark = await page.locator("#messages > li").last().evaluate((li) => getComputedStyle(li, "::before").content);
    assert.equal(mark, '"Messages that are not text were left out: partition 0, offsets 5 to 6."');
    assert.equal(await page.locator("#tail").textContent(), "");
    await says(page, "#gaps", "offsets 5 to 6");
    await says(page, "#spoken", "Messages are missing");
    await page.reload();
    await last(page, "behind");
    await says(page, "#gaps", "offsets 5 to 6");
  });

  test("what Kafka deleted while the line was cut is marked", async (context) => {
    const { fake, open } = await setUp(context, { count: 5 });
    const page = await open();
    await shows(page, 5);
    fake.refusal = { status: 503 };
    fake.cut();
    await says(page, "#state", "Disconnected");
    for (const data of numbers(5, 9)) fake.publish(data);
    fake.deleteBefore(0, 7);
    fake.refusal = null;
    await last(page, "m8");
    await says(page, "#gaps", "Kafka deleted messages here before they were read: partition 0, offsets 5 to 6.");
  });

  test("an unreachable Kafka is shown at once, until it is back", async (context) => {
    const { fake, open } = await setUp(context, { count: 1 });
    const page = await open();
    await shows(page, 1);
    fake.lose();
    await page.locator("#away").waitFor({ state: "visible" });
    await says(page, "#away", "Kafka has been unreachable since");
    await says(page, "#state", "Kafka is unreachable");
    fake.find();
    await page.locator("#away").waitFor({ state: "hidden" });
    await says(page, "#state", "Live");
  });

  test("the reason why a topic cannot be read is shown", async (context) => {
    const { fake, open } = await setUp(context);
    const page = await open();
    fake.lose("Kafka does not authorize this server to read the topic");
    await says(page, "#away", "does not authorize this server to read the topic");
    await says(page, "#state", "The topic cannot be read");
  });

  test("a timestamp that is no date costs nothing but itself", async (context) => {
    const { fake, open } = await setUp(context);
    const page = await open();
    fake.publish("in nanoseconds", { timestamp: 1_790_000_000_000_000_000 });
    fake.publish("of the end of time", { timestamp: 2 ** 63 });
    fake.publish("of now");
    await says(page, "#messages", "of now");
    await says(page, "#messages", "of the end of time");
    const times = await page.evaluate(() => [...document.querySelectorAll("#messages li")].map((item) => item.dataset.time));
    assert.ok(times.includes("1790000000000000000"), times.join());
  });

  test("an event that cannot be shown costs itself only, as it arrives and in history", async (context) => {
    const { fake, window, open } = await setUp(context, { count: 250 });
    fake.publish("cursed", { timestamp: 666 });
    for (const data of numbers(250, 450)) fake.publish(data);
    await window.addInitScript(() => {
      const original = Object.getOwnPropertyDescriptor(Intl.DateTimeFormat.prototype, "format").get;
      Object.defineProperty(Intl.DateTimeFormat.prototype, "format", {
        get() {
          const format = original.call(this);
          return (value) => {
            if (Number(value) === 666) throw new Error("cursed");
            return format(value);
          };
        },
      });
    });
    const page = await open();
    await shows(page, 200);
    fake.publish("cursed too", { timestamp: 666 });
    fake.say({ type: "gap", reason: "of-tomorrow", ranges: null });
    fake.say({ type: "gap", reason: "of-tomorrow", ranges: [null] });
    fake.publish("after it");
    await last(page, "after it");
    assert.equal((await texts(page)).at(-2), "The message at partition 0, offset 451 cannot be shown.");
    await says(page, "#gaps", "Messages are missing here (of-tomorrow)");
    await until("the beginning is reached", async () => {
      await scrollTo(page, 0);
      return page.locator("#origin").isVisible();
    });
    assert.equal((await texts(page))[250], "The message at partition 0, offset 250 cannot be shown.");
    assert.equal((await texts(page)).length, 453);
  });

  test("messages with the same offsets behind a lost end of the log are shown, and the gap shows what was lost", async (context) => {
    const { fake, open } = await setUp(context, { count: 5 });
    const page = await open();
    await shows(page, 5);
    fake.publish("", { gap: "unreadable" });
    fake.truncate(0, 3);
    for (const data of ["again 3", "again 4"]) fake.publish(data);
    await last(page, "again 4");
    assert.deepEqual(await texts(page), [...numbers(0, 5), "again 3", "again 4"]);
    await says(page, "#gaps", "The topic lost the end of its log here, and new messages get the same offsets again: partition 0, offsets 3 to 5.");
    await says(page, "#gaps", "Kafka has a batch here that cannot be decompressed, or whose checksum is wrong: partition 0, offset 5.");
  });

  test("a message of another day has the date, also when the day changes while it is shown", async (context) => {
    const { fake, window } = await setUp(context);
    fake.publish("of yesterday", { timestamp: Date.now() - 86_400_000 });
    fake.publish("of today");
    const page = await window.newPage();
    await page.clock.install();
    await page.goto(fake.url);
    await shows(page, 2);
    const times = () => page.evaluate(() => [...document.querySelectorAll("#messages li")].map((item) => item.dataset.time));
    const [yesterday, today] = await times();
    assert.match(yesterday, /\w+ \d+, .*\d\d:\d\d:\d\d$/);
    assert.match(today, /^\d\d:\d\d:\d\d$/);
    await page.clock.setSystemTime(new Date(Date.now() + 86_400_000));
    await until("it has the date, too", async () => {
      await page.clock.runFor(1_000);
      return /\d, .*\d\d:\d\d:\d\d$/.test((await times())[1]);
    });
  });

  test("a page without streams polls, shows everything, and gives the reason", async (context) => {
    const { fake, open } = await setUp(context, { count: 3 });
    fake.heldBack = "streams";
    const page = await open();
    await until("it polls", async () => (await page.locator("#away").textContent()).includes("Response buffering must be off for /events"), 40_000);
    await says(page, "#state", "Live over polling");
    await shows(page, 3);
    assert.ok(await page.locator("#origin").isVisible());
    fake.publish("polled");
    await last(page, "polled");
  });

  test("older messages that cannot be loaded are requested again by the button", async (context) => {
    const { fake, open } = await setUp(context, { count: 250 });
    const page = await open();
    await shows(page, 200);
    fake.noHistory = true;
    await scrollTo(page, 0);
    await says(page, "#older", "Kafka is unreachable");
    fake.noHistory = false;
    await page.locator("#older").click();
    await shows(page, 250);
  });

  test("a hostile message is text, whole, and shapes nothing", async (context) => {
    const { fake, open } = await setUp(context);
    const page = await open();
    await says(page, "#state", "Live");
    const hostile = [
      "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script></li></ul>",
      "\u202Ereversed \u2067isolated without an end",
      "a NUL \u0000 and an ESC \u001b[31m",
      "lines\nand\ttabs\r\nand one\rmore",
      "x".repeat(200_000),
      "\ud800 half a character",
    ];
    for (const data of hostile) fake.publish(data);
    fake.publish(null);
    await shows(page, 7);
    assert.deepEqual(await texts(page), [...hostile, ""]);
    assert.equal(await page.title(), "Hello World Broadcasts");
    const { children, wide } = await page.evaluate(() => ({
      children: document.querySelectorAll("#messages > li *, #messages > :not(li)").length,
      wide: document.documentElement.scrollWidth > innerWidth || scroller.scrollWidth > scroller.clientWidth,
    }));
    assert.equal(children, 0);
    assert.equal(wide, false);
  });

  test("the transport is a choice that is remembered, and changing it loses nothing", async (context) => {
    const { fake, open } = await setUp(context, { count: 3 });
    const page = await open();
    await shows(page, 3);
    await page.locator("[value=sse]").focus();
    await page.keyboard.press("ArrowRight");
    await says(page, "#state", "Live");
    fake.publish("over the WebSocket");
    await last(page, "over the WebSocket");
    assert.equal((await texts(page)).length, 4);
    await page.reload();
    await shows(page, 4);
    assert.ok(await page.locator("[value=websocket]").isChecked());
  });

  test("one of several topics is chosen, and the address names it", async (context) => {
    const { open } = await setUp(context, { count: 3, topics: ["dev-topic", "other-topic"] });
    const page = await open();
    await shows(page, 3);
    await page.locator("#topic").selectOption("other-topic");
    await says(page, "#env", "Kafka Topic: other-topic");
    assert.ok(page.url().endsWith("?topic=other-topic"));
    await page.reload();
    await says(page, "#env", "Kafka Topic: other-topic");
    await shows(page, 3);
  });

  test("one topic alone offers no choice of topics", async (context) => {
    const { open } = await setUp(context, { count: 1 });
    const page = await open();
    await shows(page, 1);
    assert.ok(await page.locator("#topics").isHidden());
  });

  test("an empty topic is reported as empty", async (context) => {
    const { fake, open } = await setUp(context);
    const page = await open();
    await page.locator("#empty").waitFor({ state: "visible" });
    fake.publish("the first");
    await last(page, "the first");
    assert.ok(await page.locator("#empty").isHidden());
  });

  test("the figures count new messages and report when the clocks differ", async (context) => {
    const { fake, open } = await setUp(context, { count: 20 });
    const page = await open();
    await shows(page, 20);
    await says(page, "#state", "Live");
    assert.equal(await page.locator("#messages > [data-delay]").count(), 0);
    for (const data of numbers(20, 25)) fake.publish(data);
    await says(page, "#delay-figure", "p50");
    await until("the new ones are counted", async () => Number(await page.locator("#rate-figure").textContent()) >= 5);
    assert.ok(await page.locator("#skew").isHidden());
    fake.publish("from the future", { timestamp: Date.now() + 5_000 });
    await page.locator("#skew").waitFor({ state: "visible" });
  });

  test("on a phone nothing is wider than the screen", async (context) => {
    const { fake, open } = await setUp(context, { count: 40, viewport: { width: 360, height: 640 }, topics: ["dev-topic", "a-topic-with-a-rather-long-name-for-a-small-screen"] });
    const page = await open();
    await shows(page, 40);
    fake.publish("", { gap: "too-large" });
    fake.publish("w".repeat(500));
    await shows(page, 41);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    assert.ok((await page.locator("#scroller").boundingBox()).height > 200);
  });

  test("the page can be used with the keyboard and is labelled for screen readers", async (context) => {
    const { open } = await setUp(context, { count: 100 });
    const page = await open();
    await shows(page, 100);
    for (const role of ["banner", "main", "complementary", "log"]) assert.equal(await page.getByRole(role).count(), 1, role);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "scroller");
    await page.keyboard.press("Home");
    await until("it has scrolled", async () => (await page.locator("#scroller").evaluate((element) => element.scrollTop)) < 400);
  });
});
