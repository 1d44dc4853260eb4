// Pages of what is older, and starts that lie in the past.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { io } from "socket.io-client";

import { startConsumer } from "./support/consumer.js";
import { readThroughEveryTransport } from "./support/transports.js";
import { without } from "./support/environment.js";
import { cameOnceInOrder } from "./support/exactness.js";
import { openEvents, request } from "./support/http.js";
import { newTopic, publish, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

const page = async (consumer, parameters) => {
  const { status, json } = await request(`${consumer.url}/messages?${new URLSearchParams(parameters)}`);
  assert.equal(status, 200, JSON.stringify(json));
  return json;
};

/** Follows `after` from a page until the end; the pages after it, in their order. */
async function forwardFrom(consumer, { after }, limit) {
  const pages = [];
  for (;;) {
    const next = await page(consumer, { after, limit });
    if (next.messages.length === 0) {
      return pages;
    }
    assert.ok(next.messages.length <= limit);
    pages.push(next);
    after = next.after;
  }
}

/** Follows `before` from a page until the start; the pages before it, in the log's order. */
async function backwardFrom(consumer, { before }, limit) {
  const pages = [];
  while (before !== null) {
    const next = await page(consumer, { before, limit });
    if (next.messages.length === 0) {
      assert.equal(next.before, null);
      break;
    }
    assert.ok(next.messages.length <= limit);
    pages.unshift(next);
    before = next.before;
  }
  return pages;
}

const messages = (pages) => pages.flatMap((page) => page.messages);

describe("history", { skip: without("kafka"), concurrency: true }, () => {
  test("pages in both directions hold each message once, and meet", async (t) => {
    const topic = await newTopic(3);
    const sent = [1500, 1000, 500].map((count, partition) => texts(`p${partition}`, count));
    // Timestamps in no order at all, as they are when devices send late.
    const now = Date.now();
    await publish(topic, sent.flatMap((values, partition) =>
      values.map((value) => ({ partition, value, timestamp: String(now - Math.floor(Math.random() * 3_600_000)) })),
    ));
    const consumer = await startConsumer(t, topic, ["--ring-messages", "100"]);
    const newest = await page(consumer, { limit: 100 });
    assert.equal(newest.messages.length, 100);

    await t.test("backward from the newest page", async () => {
      cameOnceInOrder(messages([...(await backwardFrom(consumer, newest, 500)), newest]), sent);
    });
    await t.test("forward from the start", async () => {
      const first = await page(consumer, { from: "earliest", limit: 137 });
      cameOnceInOrder(messages([first, ...(await forwardFrom(consumer, first, 137))]), sent);
    });
    await t.test("both ways from a page in the middle", async () => {
      const { after: somewhere } = await page(consumer, { before: newest.before, limit: 500 }).then(({ before }) => page(consumer, { before, limit: 500 }));
      const middle = await page(consumer, { after: somewhere, limit: 50 });
      const before = await backwardFrom(consumer, middle, 333);
      const after = await forwardFrom(consumer, middle, 333);
      cameOnceInOrder(messages([...before, middle, ...after]), sent);
    });
    await t.test("there and back again", async () => {
      const first = await page(consumer, { from: "earliest", limit: 200 });
      const second = await page(consumer, { after: first.after, limit: 200 });
      const again = await page(consumer, { before: second.before, limit: 500 });
      cameOnceInOrder(again.messages, sent.map((_, partition) => first.messages.filter((message) => message.partition === partition).map(({ data }) => data)));
    });
    await t.test("and a stream goes on where a page ends", async (t) => {
      const first = await page(consumer, { from: "earliest", limit: 123 });
      const socket = openSocket(t, `${consumer.ws}?after=${first.after}`);
      await socket.takes("message", 3000 - 123);
      cameOnceInOrder([...first.messages, ...socket.got("message")], sent);
    });
  });

  test("a page that begins with the oldest message reports that there is nothing before it", async (t) => {
    const topic = await newTopic();
    await publish(topic, texts("message", 20));
    const consumer = await startConsumer(t, topic);
    const whole = await page(consumer, {});
    assert.equal(whole.messages.length, 20);
    const middle = await page(consumer, { limit: 10 });
    assert.notEqual(middle.before, null);
    const oldest = await page(consumer, { before: middle.before });
    assert.deepEqual([oldest.messages.length, oldest.before], [10, null]);
    assert.equal(whole.before, null);
    assert.equal((await page(consumer, { from: "earliest", limit: 5 })).before, null);
  });

  test("a page is merged by timestamp, and by partition where that is equal", async (t) => {
    const topic = await newTopic(3);
    const now = Date.now() - 100_000;
    const records = Array.from({ length: 90 }, (_, number) => ({ partition: number % 3, value: `${number}`, timestamp: String(now + 1000 * Math.floor(number / 6)) }));
    await publish(topic, records);
    const consumer = await startConsumer(t, topic);
    const expected = records.toSorted((a, b) => a.timestamp - b.timestamp || a.partition - b.partition || a.value - b.value).map(({ value }) => value);
    const first = await page(consumer, { from: "earliest", limit: 90 });
    const newest = await page(consumer, { limit: 90 });
    assert.deepEqual(first.messages.map(({ data }) => data), expected);
    assert.deepEqual(newest.messages.map(({ data }) => data), expected);
  });

  test("a start in the past is found on every transport", async (t) => {
    const topic = await newTopic(2);
    const base = Date.parse("2026-01-31T12:00:00Z");
    await publish(topic, texts("p0", 10).map((value, hour) => ({ partition: 0, value, timestamp: String(base + hour * 3_600_000) })));
    await publish(topic, texts("p1", 10).map((value, hour) => ({ partition: 1, value, timestamp: String(base + hour * 3_600_000 + 1) })));
    const consumer = await startConsumer(t, topic);
    for (const [from, p0, p1] of [
      ["2026-01-31T15:00:00Z", 3, 3],
      ["2026-01-31T16:00:00.001+01:00", 4, 3],
      ["2020-01-01T00:00:00Z", 0, 0],
      ["earliest", 0, 0],
    ]) {
      await t.test(from, async (t) => {
        const expected = [texts("p0", 10).slice(p0), texts("p1", 10).slice(p1)];
        const { "server-sent events, text": text, ...transports } = await readThroughEveryTransport(t, consumer, 20 - p0 - p1, { from });
        for (const { messages } of Object.values(transports)) {
          cameOnceInOrder(messages, expected);
        }
        assert.deepEqual(text.messages.map(({ data }) => data), transports.WebSocket.messages.map(({ data }) => data));
      });
    }
    await t.test("after the newest message", async () => {
      const empty = await page(consumer, { from: new Date(Date.now() + 3_600_000).toISOString() });
      assert.deepEqual([empty.messages, empty.gaps], [[], []]);
    });
  });

  test("the newest n messages come first to a stream that asks for them", async (t) => {
    const topic = await newTopic(2);
    const sent = [texts("p0", 300), texts("p1", 300)];
    const now = Date.now() - 600_000;
    await publish(topic, sent.flatMap((values, partition) => values.map((value, at) => ({ partition, value, timestamp: String(now + 2 * at + partition) }))));
    // One holds them all itself, one has to ask Kafka.
    for (const ring of ["10000", "50"]) {
      const consumer = await startConsumer(t, topic, ["--ring-messages", ring]);
      for (const last of [0, 1, 7, 500]) {
        const stream = await openEvents(t, `${consumer.url}/events?format=json&last=${last}`);
        await stream.takes(last);
        const got = stream.messages().map(({ data }) => JSON.parse(data));
        cameOnceInOrder(got, sent.map((values, partition) => values.slice(300 - (partition === 1 ? Math.ceil(last / 2) : Math.floor(last / 2)))));
        assert.equal(got.length, last);
      }
    }
  });

  test("an invalid limit, position or time is rejected with one sentence", async (t) => {
    const topic = await newTopic();
    await publish(topic, texts("message", 60));
    const consumer = await startConsumer(t, topic);
    for (const [query, status, sentence] of [
      ["limit=0", 400, 'limit is "0"; it must be a number from 1 to 500'],
      ["limit=501", 400, 'limit is "501"; it must be a number from 1 to 500'],
      ["limit=ten", 400, 'limit is "ten"; it must be a number from 1 to 500'],
      ["from=yesterday", 400, 'from is "yesterday"; it must be "earliest" or a time such as 2026-01-31T12:00:00Z'],
      ["after=AQ&before=AQ", 400, "after, before and from exclude each other; give at most one of them"],
      ["after=AQ&from=earliest", 400, "after, before and from exclude each other; give at most one of them"],
      ["binary=hex", 400, 'binary is "hex"; it must be base64'],
      ["limit=1&limit=2", 400, "the query cannot be read; give each parameter but key once, as percent-encoded UTF-8"],
      ["topic=nowhere", 404, `topic "nowhere" is not served here; these are: ${topic}`],
    ]) {
      const answer = await request(`${consumer.url}/messages?${query}`);
      assert.deepEqual([answer.status, answer.json], [status, { error: sentence }], query);
    }
    assert.equal((await page(consumer, {})).messages.length, 50);
    assert.equal((await page(consumer, { limit: 500 })).messages.length, 60);
  });

  test("a garbled cursor, or one of another topic, strands nobody", async (t) => {
    const [topic, other] = [await newTopic(), await newTopic()];
    await publish(topic, ["before"]);
    await publish(other, ["elsewhere"]);
    const consumer = await startConsumer(t, [topic, other]);
    const { after: foreign } = await page(consumer, { topic: other });
    const gap = { reason: "unknown-cursor", ranges: [] };
    const strip = ({ reason, ranges }) => ({ reason, ranges });
    const garbled = ["x", "!!", "AQ", "A".repeat(3000), "0", "%00", foreign];

    const streams = [];
    for (const cursor of garbled) {
      const after = cursor === "%00" ? cursor : encodeURIComponent(cursor);
      const byHeader = await openEvents(t, `${consumer.url}/events`, { headers: { "Last-Event-ID": cursor } });
      const byQuery = await openEvents(t, `${consumer.url}/events?after=${after}`);
      const websocket = openSocket(t, `${consumer.ws}?after=${after}`);
      const socket = io(consumer.url, { forceNew: true, auth: { after: cursor }, transports: ["websocket"] });
      t.after(() => socket.close());
      const socketio = { gap: [], message: [] };
      for (const name of ["gap", "message"]) {
        socket.on(name, (payload) => socketio[name].push(payload));
      }
      streams.push({ cursor, gaps: () => byHeader.named("gap"), texts: () => byHeader.messages().map(({ data }) => data) });
      streams.push({ cursor, gaps: () => byQuery.named("gap"), texts: () => byQuery.messages().map(({ data }) => data) });
      streams.push({ cursor, gaps: () => websocket.got("gap"), texts: () => websocket.got("message").map(({ data }) => data) });
      streams.push({ cursor, gaps: () => socketio.gap, texts: () => socketio.message.map(({ data }) => data) });
      assert.deepEqual((await request(`${consumer.url}/messages?after=${after}`)).json.gaps, [gap], cursor);
      assert.deepEqual((await request(`${consumer.url}/messages?before=${after}`)).json.gaps, [gap], cursor);
    }
    await until("all have received a gap", () => streams.every(({ gaps }) => gaps().length > 0));
    await publish(topic, ["live from now"]);
    await until("all are live", () => streams.every(({ texts }) => texts().length > 0));
    for (const { cursor, gaps, texts } of streams) {
      assert.deepEqual([gaps().map(strip), texts()], [[gap], ["live from now"]], cursor);
      assert.ok(gaps()[0].cursor);
    }
  });
});
