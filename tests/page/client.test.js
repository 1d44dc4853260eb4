import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { launch, missing, until } from "./browser.js";
import { inOrder } from "../../services/consumer/src/page/link.js";
import { startFake } from "./fake.js";

const skip = missing();
let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

/** A consumer, and a browser whose tabs are opened with `tab(options)`; all of it ends with the test. */
async function setUp(context, options) {
  const fake = await startFake(options);
  const window = await browser.newContext();
  context.after(async () => {
    await window.close();
    await fake.close();
  });
  const tab = async (connectOptions = {}) => {
    const page = await window.newPage();
    await page.goto(`${fake.url}blank`);
    await listen(page, connectOptions);
    return page;
  };
  return { fake, window, tab };
}

function listen(page, options) {
  return page.evaluate(async (options) => {
    const { connect } = await import("/client.js");
    window.events = [];
    window.states = [];
    window.stream = connect(options);
    for (const type of ["start", "message", "gap", "status", "bye"]) stream.addEventListener(type, ({ detail }) => events.push(detail));
    stream.addEventListener("state", ({ detail }) => states.push(detail));
  }, options);
}

const state = (page) => page.evaluate(() => stream.state.name);
const transportOf = (page) => page.evaluate(() => stream.state.transport);
const isLive = (page) => until("the stream is live", async () => (await state(page)) === "live");
const received = (page) => page.evaluate(() => events.filter((event) => event.type === "message").map((event) => event.data));
const places = (page) => page.evaluate(() => events.filter((e) => e.type === "message").map((e) => [e.partition, e.offset]));
const ofType = (page, type) => page.evaluate((type) => events.filter((event) => event.type === type), type);
const has = (page, count) => until(`${count} messages`, async () => (await received(page)).length >= count);
const numbers = (from, to) => Array.from({ length: to - from }, (_, index) => `m${from + index}`);

/** Every record of the log from `starts` on came once, in the order of its partition. */
function assertExact(seen, fake, starts) {
  for (const [partition, { begin, records }] of fake.partitions.entries()) {
    const offsets = seen.filter(([p]) => p === partition).map(([, offset]) => offset);
    const from = starts[partition];
    assert.deepEqual(offsets, Array.from({ length: begin + records.length - from }, (_, i) => from + i), `partition ${partition}`);
  }
}

/** Each cursor is what the tab had received with that event: a client that stores it and resumes another day misses nothing. */
async function assertCursors(page, fake, starts) {
  const seen = [...starts];
  for (const event of await page.evaluate(() => events)) {
    if (event.type === "message") seen[event.partition] = event.offset + 1;
    if (event.cursor !== null) assert.deepEqual(fake.vector(event.cursor), seen, JSON.stringify(event));
  }
  assert.deepEqual(fake.vector(await page.evaluate(() => stream.cursor)), seen);
}

for (const transport of ["sse", "websocket"]) {
  describe(`over ${transport}`, { skip }, () => {
    test("a tab sees the newest messages and then what arrives", async (context) => {
      const { fake, tab } = await setUp(context);
      for (const data of numbers(0, 10)) fake.publish(data);
      const page = await tab({ transport, last: 3 });
      await has(page, 3);
      fake.publish("m10");
      await has(page, 4);
      assert.deepEqual(await received(page), numbers(7, 11));
      assert.equal((await ofType(page, "start")).length, 1);
    });

    test("a connection that is cut again and again loses nothing and doubles nothing", async (context) => {
      const { fake, tab } = await setUp(context, { partitions: 3 });
      const page = await tab({ transport });
      await isLive(page);
      for (let round = 0; round < 12; round += 1) {
        const cutEarly = round % 2;
        if (cutEarly) fake.cut();
        fake.publishAll(numbers(0, 9).map((data, index) => ({ data: `${round}${data}`, partition: index % 3 })));
        if (!cutEarly) fake.cut();
      }
      await has(page, 108);
      assertExact(await places(page), fake, [0, 0, 0]);
    });

    test("a client that is disconnected before the first message still gets it", async (context) => {
      const { fake, tab } = await setUp(context);
      const page = await tab({ transport });
      await isLive(page);
      fake.cut();
      fake.publish("first");
      await has(page, 1);
      assert.deepEqual(await received(page), ["first"]);
    });

    test("after a bye, the client reconnects after the server's retry time", async (context) => {
      const { fake, tab } = await setUp(context);
      const page = await tab({ transport });
      await isLive(page);
      fake.bye("drain", 700);
      await until("it waits", async () => (await state(page)) === "waiting");
      const left = await page.evaluate(() => stream.state.until - Date.now());
      assert.ok(left > 300 && left <= 700, `${left} ms left`);
      fake.publish("after the drain");
      await has(page, 1);
      assert.equal((await ofType(page, "bye"))[0].reason, "drain");
    });

    test("a request that cannot be served ends and does not come back", async (context) => {
      const { fake, tab } = await setUp(context);
      const page = await tab({ transport, topic: "nonsense" });
      await until("it has ended", async () => (await state(page)) === "ended");
      assert.equal(await page.evaluate(() => stream.state.reason), "this cannot be served");
      assert.equal(fake.opened, 1);
    });

    test("a topic that is not served ends the stream with the server's sentence, however it was to begin", async (context) => {
      const { fake, tab } = await setUp(context);
      for (const start of [{ from: "earliest" }, { after: "garbled" }]) {
        fake.opened = fake.asked = 0;
        fake.refusal = transport === "sse" ? { status: 404, body: { error: "this cannot be served" } } : null;
        const page = await tab({ transport, topic: "typo", ...start });
        await until("it has ended", async () => (await state(page)) === "ended");
        assert.match(await page.evaluate(() => stream.state.reason), /cannot be served/);
        await new Promise((resolve) => setTimeout(resolve, 500));
        assert.ok(fake.opened + fake.asked <= 2, `asked ${fake.opened + fake.asked} times`);
      }
    });

    test("an event without a message, or of an unknown type, moves the cursor", async (context) => {
      const { fake, tab } = await setUp(context);
      const page = await tab({ transport });
      await isLive(page);
      for (const type of ["position", "of-tomorrow"]) {
        fake.say({ type, cursor: `AgAA${type.slice(0, 4)}` });
        await until("the cursor has moved", async () => (await page.evaluate(() => stream.cursor)) === `AgAA${type.slice(0, 4)}`);
      }
      assert.deepEqual(await received(page), []);
    });

    test("behind a lost end of the log the same offsets come again, also to a tab that comes later", async (context) => {
      const { fake, tab } = await setUp(context);
      for (const data of numbers(0, 6)) fake.publish(data);
      const page = await tab({ transport, last: 6 });
      await has(page, 6);
      fake.truncate(0, 3);
      for (const data of numbers(10, 13)) fake.publish(data);
      await has(page, 9);
      assert.deepEqual(await received(page), [...numbers(0, 6), ...numbers(10, 13)]);
      assert.deepEqual(await ofType(page, "gap").then((gaps) => gaps.map(({ ranges }) => ranges)), [[{ partition: 0, from: 3, to: 6 }]]);
      const later = await tab({ transport, last: 6 });
      await has(later, 6);
      assert.deepEqual(await received(later), [...numbers(0, 3), ...numbers(10, 13)]);
    });

    test("a server that refuses for a while is tried again", async (context) => {
      const { fake, tab } = await setUp(context);
      fake.refusal = { status: 503 };
      const page = await tab({ transport, last: 1 });
      await until("it waits", async () => (await state(page)) === "waiting");
      fake.refusal = null;
      fake.publish("here again");
      await has(page, 1);
    });

    test("an unreachable Kafka is reported, also to a tab that opens later, and so is its recovery", async (context) => {
      const { fake, tab } = await setUp(context);
      const first = await tab({ transport });
      await isLive(first);
      fake.lose();
      await until("it is notified", async () => (await state(first)) === "away");
      const second = await tab({ transport });
      await until("the second is notified", async () => (await state(second)) === "away");
      fake.find();
      await isLive(first);
      await isLive(second);
    });

    test("a gap is delivered with its ranges, once, at its position", async (context) => {
      const { fake, tab } = await setUp(context);
      fake.publish("m0");
      fake.publish("", { gap: "not-utf8" });
      fake.publish("m2");
      const page = await tab({ transport, from: "earliest" });
      await has(page, 2);
      const events = await page.evaluate(() => events.map((event) => event.reason ?? event.data ?? event.type));
      assert.deepEqual(events, ["start", "m0", "not-utf8", "m2"]);
      assert.deepEqual((await ofType(page, "gap"))[0].ranges, [{ partition: 0, from: 1, to: 2 }]);
    });

    test("a line that died without a word is noticed", async (context) => {
      const { fake, window } = await setUp(context);
      const page = await window.newPage();
      await page.clock.install();
      await page.goto(`${fake.url}blank`);
      await listen(page, { transport, shared: false });
      await isLive(page);
      fake.silence();
      fake.publish("unheard");
      await until("it comes back", async () => {
        await page.clock.fastForward(10_000);
        return (await received(page)).length > 0;
      });
      assert.deepEqual(await received(page), ["unheard"]);
    });

    test("twelve tabs share one connection, and each gets everything once", async (context) => {
      const { fake, tab } = await setUp(context, { partitions: 2 });
      for (const [index, data] of numbers(0, 20).entries()) fake.publish(data, { partition: index % 2 });
      const pages = await Promise.all(Array.from({ length: 12 }, () => tab({ transport, last: 20 })));
      await Promise.all(pages.map((page) => has(page, 20)));
      assert.equal(fake.opened, 1);
      await pages.shift().close();
      fake.cut();
      fake.publishAll(numbers(20, 40).map((data, index) => ({ data, partition: index % 2 })));
      await Promise.all(pages.map((page) => has(page, 40)));
      for (const page of pages) assertExact(await places(page), fake, [0, 0]);
      assert.equal(fake.opened, 2);
    });

    test("tabs that begin at different positions end up on one connection, and each is exact", async (context) => {
      const { fake, tab } = await setUp(context, { partitions: 3 });
      const publish = (from, to) => fake.publishAll(numbers(from, to).map((data, index) => ({ data, partition: index % 3 })));
      publish(0, 30);
      const now = await tab({ transport });
      await isLive(now);
      publish(30, 60);
      await has(now, 30);
      const cursor = await now.evaluate(() => stream.cursor);
      publish(60, 90);
      await has(now, 60);
      const all = [
        [now, [10, 10, 10]],
        [await tab({ transport, from: "earliest" }), [0, 0, 0]],
        [await tab({ transport, after: cursor }), [20, 20, 20]],
        [await tab({ transport, last: 60 }), [10, 10, 10]],
        [await tab({ transport, last: 90 }), [0, 0, 0]],
        [await tab({ transport }), [30, 30, 30]],
      ];
      for (const [page] of all) await isLive(page);
      for (let round = 0; round < 10; round += 1) {
        publish(0, 9);
        if (round % 4 === 3) fake.cut();
      }
      for (const [page, starts] of all) {
        await has(page, 180 - starts[0] * 3);
        assertExact(await places(page), fake, starts);
        await assertCursors(page, fake, starts);
      }
      await until("one connection is left", () => fake.streams.size === 1);
    });

    test("a recreated log is read from its start, and every tab continues in it", async (context) => {
      const { fake, tab } = await setUp(context);
      const pages = [await tab({ transport }), await tab({ transport })];
      for (const page of pages) await isLive(page);
      for (const data of numbers(0, 5)) fake.publish(data);
      for (const page of pages) await has(page, 5);
      fake.recreate();
      for (const data of ["new 0", "new 1"]) fake.publish(data);
      for (const page of pages) {
        await has(page, 7);
        assert.deepEqual(await received(page), [...numbers(0, 5), "new 0", "new 1"]);
        assert.deepEqual((await ofType(page, "gap")).map((gap) => gap.reason), ["recreated"]);
      }
      const late = await tab({ transport, last: 1 });
      await has(late, 1);
      fake.publish("new 2");
      await has(late, 2);
      assert.deepEqual(await received(late), ["new 1", "new 2"]);
    });
  });
}

test("a worker that crashes loses no message", { skip }, async (context) => {
  const { fake, window, tab } = await setUp(context, { partitions: 2 });
  const pages = [await tab({}), await tab({}), await tab({})];
  for (const page of pages) await isLive(page);
  const publish = (from, to) => fake.publishAll(numbers(from, to).map((data, index) => ({ data, partition: index % 2 })));
  publish(0, 10);
  for (const page of pages) await has(page, 10);
  await killWorkers(window, pages[0]);
  await until("its connection is gone", () => fake.streams.size === 0);
  publish(10, 20);
  for (const page of pages) await until("all of it came", async () => (await received(page)).length >= 20, 60_000);
  for (const page of pages) assertExact(await places(page), fake, [0, 0]);
  await until("one connection is left", () => fake.streams.size === 1);
});

test("a frozen tab does not fill the worker's memory, and catches up when it wakes", { skip }, async (context) => {
  const { fake, window, tab } = await setUp(context);
  const [frozen, awake] = [await tab({}), await tab({})];
  for (const page of [frozen, awake]) await isLive(page);
  await until("they share", () => fake.streams.size === 1);
  const { opened } = fake;
  const session = await window.newCDPSession(frozen);
  await session.send("Debugger.enable");
  await session.send("Debugger.pause");
  for (let count = 0; count < 12; count += 1) {
    fake.publish("x".repeat(1_000_000));
    await has(awake, count + 1);
  }
  await session.send("Debugger.resume");
  await has(frozen, 12);
  fake.publish("live again");
  for (const page of [frozen, awake]) await has(page, 13);
  for (const page of [frozen, awake]) assertExact(await places(page), fake, [0]);
  assert.equal(fake.opened, opened + 1, "it had to come back for what was not kept");
  await until("one connection is left", () => fake.streams.size === 1);
});

test("a tab that is restored from the browser's cache resumes at its position", { skip }, async (context) => {
  const { fake, tab } = await setUp(context);
  const page = await tab({});
  await isLive(page);
  fake.publish("m0");
  await has(page, 1);
  await page.evaluate(() => dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true })));
  fake.publish("m1");
  await until("its connection is gone", () => fake.streams.size === 0);
  await page.evaluate(() => dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true })));
  await has(page, 2);
  assert.deepEqual(await received(page), ["m0", "m1"]);
});

test("without a SharedWorker each tab has its own connection, and one that is hidden lets go of it", { skip }, async (context) => {
  const { fake, window } = await setUp(context);
  const page = await window.newPage();
  await page.clock.install();
  await page.addInitScript(() => {
    delete window.SharedWorker;
    Object.defineProperty(document, "hidden", { get: () => window.isHidden === true });
    window.hide = (hidden) => {
      window.isHidden = hidden;
      document.dispatchEvent(new Event("visibilitychange"));
    };
  });
  await page.goto(`${fake.url}blank`);
  await listen(page, {});
  await isLive(page);
  await page.evaluate(() => hide(true));
  await page.clock.fastForward(31_000);
  await until("its connection is gone", () => fake.streams.size === 0);
  fake.publish("meanwhile");
  await page.evaluate(() => hide(false));
  await has(page, 1);
  assert.deepEqual(await received(page), ["meanwhile"]);
});

test("if every stream is buffered, a page polls, reports it, and misses nothing", { skip }, async (context) => {
  const { fake, tab } = await setUp(context);
  fake.heldBack = "streams";
  for (const data of numbers(0, 5)) fake.publish(data);
  const page = await tab({ last: 3 });
  await until("it polls", async () => (await page.evaluate(() => stream.state.transport)) === "polling", 40_000);
  await has(page, 3);
  for (const data of numbers(5, 9)) fake.publish(data);
  await has(page, 7);
  assert.deepEqual(await received(page), numbers(2, 9));
  assert.equal(await page.evaluate(() => events[0].type), "start");
  fake.noHistory = true;
  await until("it is notified that kafka is unreachable", async () => (await state(page)) === "away");
  fake.noHistory = false;
  fake.publish("m9");
  await has(page, 8);
  assert.equal(await state(page), "live");
});

test("if a WebSocket is refused, server-sent events are used, and the state reports it", { skip }, async (context) => {
  const { fake, tab } = await setUp(context);
  fake.heldBack = "websocket";
  const page = await tab({ transport: "websocket" });
  await isLive(page);
  assert.equal(await page.evaluate(() => stream.state.transport), "sse");
  fake.publish("m0");
  await has(page, 1);
});

test("tabs that poll share it, gaps included, and none of them is cut", { skip }, async (context) => {
  const { fake, tab } = await setUp(context, { partitions: 2 });
  fake.heldBack = "streams";
  for (const [index, data] of numbers(0, 10).entries()) fake.publish(data, { partition: index % 2 });
  fake.publish("", { gap: "not-utf8" });
  fake.publish("m11");
  const first = await tab({ last: 200 });
  await until("it polls", async () => (await transportOf(first)) === "polling", 40_000);
  await has(first, 11);
  await first.evaluate(() => states.splice(0)); // the WebSocket was tried twice before
  const [second, third] = [await tab({ last: 200 }), await tab({ from: "earliest" })];
  for (const page of [second, third]) await has(page, 11);
  for (const data of ["m12", "m13"]) fake.publish(data);
  for (const page of [first, second, third]) {
    await has(page, 13);
    assert.deepEqual((await received(page)).toSorted(), [...numbers(0, 10), "m11", "m12", "m13"].toSorted());
    assert.deepEqual((await ofType(page, "gap")).map(({ reason }) => reason), ["not-utf8"]);
    assert.deepEqual((await page.evaluate(() => states)).filter(({ name }) => name === "waiting"), []);
  }
});

test("polling begins at the requested position, names the topic, and reports a lost Kafka once", { skip }, async (context) => {
  const { fake, tab } = await setUp(context);
  fake.heldBack = "streams";
  for (const data of numbers(0, 5)) fake.publish(data);
  const page = await tab({ shared: false });
  await until("it polls", async () => (await transportOf(page)) === "polling", 40_000);
  assert.equal((await ofType(page, "start"))[0].topic, "dev-topic");
  fake.publish("m5");
  await has(page, 1);
  assert.deepEqual(await received(page), ["m5"]);
  await page.evaluate(async () => {
    const { connect } = await import("/client.js");
    window.second = connect({ shared: false, from: "earliest" });
    window.secondSeen = [];
    second.addEventListener("message", ({ detail }) => secondSeen.push(detail.data));
  });
  await until("the second stream of this page knows what works", async () => (await page.evaluate(() => secondSeen.length)) === 6, 4_000);
  fake.noHistory = true;
  const polled = fake.polled;
  await until("it has polled some more", () => fake.polled > polled + 4);
  assert.equal((await ofType(page, "status")).length, 1);
  assert.equal(await state(page), "away");
});

/** A tab whose clock is the test's, with a connection of its own. */
async function tabWithClock({ fake, window }, options) {
  const page = await window.newPage();
  await page.clock.install();
  await page.goto(`${fake.url}blank`);
  await listen(page, { shared: false, ...options });
  return page;
}

test("a poll that is never answered is cut", { skip }, async (context) => {
  const { fake, window } = await setUp(context);
  fake.heldBack = "streams";
  const page = await tabWithClock({ fake, window }, {});
  await until("it polls", async () => {
    await page.clock.fastForward(1_000);
    return (await transportOf(page)) === "polling";
  });
  fake.noAnswer = true;
  const { polled } = fake;
  await until("it has polled", async () => {
    await page.clock.fastForward(1_000);
    return fake.polled > polled;
  });
  fake.noAnswer = false;
  fake.publish("m0");
  await until("it polls again", async () => {
    await page.clock.fastForward(5_000);
    return (await received(page)).length === 1;
  });
});

test("after five minutes of polling the preferred transport is tried again, and used when it works", { skip }, async (context) => {
  const { fake, window } = await setUp(context);
  fake.heldBack = "streams";
  const page = await tabWithClock({ fake, window }, {});
  const polls = async () => (await transportOf(page)) === "polling";
  await until("it polls", async () => {
    await page.clock.fastForward(1_000);
    return polls();
  });
  fake.heldBack = null;
  await until("it streams again", async () => {
    await page.clock.fastForward(2_000);
    return fake.streams.size === 1 && !(await polls());
  });
  fake.publish("m0");
  await has(page, 1);
  const names = await page.evaluate(() => states.map(({ name, transport }) => [name, transport ?? "sse"].join(" ")));
  assert.deepEqual(names.slice(names.indexOf("live polling")), ["live polling", "live sse"]);
});

test("a clock that is set back does not hide a dead connection", { skip }, async (context) => {
  const { fake, window } = await setUp(context);
  const page = await tabWithClock({ fake, window }, {});
  await isLive(page);
  fake.silence();
  fake.publish("m0");
  await page.clock.setSystemTime(new Date(Date.now() - 3_600_000));
  let seconds = 0;
  await until("it comes back", async () => {
    await page.clock.fastForward(5_000);
    seconds += 5;
    return (await received(page)).length > 0;
  });
  assert.ok(seconds < 600, `${seconds} s`);
});

for (const transport of ["sse", "websocket"]) {
  test(`an event that is no JSON, or a listener that throws, does not end the stream over ${transport}`, { skip }, async (context) => {
    const { fake, tab } = await setUp(context);
    const page = await tab({ transport });
    await isLive(page);
    await page.evaluate(() => stream.addEventListener("message", () => { throw new Error("of the listener"); }));
    fake.publish("m0");
    for (const text of ["{", "null"]) fake.sayRaw(text);
    fake.publish("m1");
    await has(page, 2);
    assert.deepEqual((await ofType(page, "gap")).map(({ reason }) => reason), ["not-parsed", "not-parsed"]);
    assert.deepEqual((await page.evaluate(() => states)).filter(({ name }) => name === "waiting"), []);
  });
}

test("a gap of a page stands before what follows it, also where offsets begin again", () => {
  const messages = [0, 1, 2].map((offset) => ({ partition: 0, offset: 3 + offset }));
  const orderOf = (gap) => inOrder({ messages, gaps: [{ ...gap, cursor: null }] }).map((event) => event.reason ?? event.offset);
  assert.deepEqual(orderOf({ reason: "truncated", ranges: [{ partition: 0, from: 3, to: 9 }] }), ["truncated", 3, 4, 5]);
  assert.deepEqual(orderOf({ reason: "recreated", ranges: [{ partition: 0, from: 9, to: null }] }), ["recreated", 3, 4, 5]);
  assert.deepEqual(orderOf({ reason: "unreadable", ranges: [{ partition: 0, from: 4, to: 5 }] }), [3, 4, "unreadable", 5]);
});

test("a cursor of version 1 joins the others; one of another topic id does not", { skip }, async (context) => {
  const { fake, tab } = await setUp(context);
  for (const data of numbers(0, 3)) fake.publish(data);
  const first = await tab({ last: 3 });
  await has(first, 3);
  const cursor = await first.evaluate(() => events.find(({ data }) => data === "m0").cursor);
  const { opened } = fake;
  const old = await tab({ after: fake.versionOne(cursor) });
  await has(old, 2);
  assert.equal(fake.opened, opened, "it shares the connection");
  const bytes = Buffer.from(cursor, "base64url");
  bytes[3] ^= 1;
  const other = await tab({ after: bytes.toString("base64url") });
  await isLive(other);
  assert.equal(fake.opened, opened + 1, "the server has to answer it");
  const lives = await other.evaluate(() => states.filter(({ name }) => name === "live").length);
  assert.equal(lives, 1, "it is live only when it is answered");
});

/** Ends the worker as a crash would: no tab is notified. */
async function killWorkers(window, page) {
  const session = await window.browser().newBrowserCDPSession();
  const { targetInfos } = await session.send("Target.getTargets");
  const workers = targetInfos.filter(({ type, url }) => type === "shared_worker" && url.startsWith(new URL(page.url()).origin));
  assert.equal(workers.length, 1);
  await session.send("Target.closeTarget", { targetId: workers[0].targetId });
}
