// Nobody holds a connection without using it: requests that do not come, and readers that do not read.

import assert from "node:assert/strict";
import net from "node:net";
import { describe, test } from "node:test";

import { createParser } from "eventsource-parser";

import { startConsumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { cameOnceInOrder } from "./support/exactness.js";
import { openEvents, request } from "./support/http.js";
import { newTopic, publish, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

/** A raw connection that sends `bytes` and then nothing more. */
function connect(t, consumer, bytes) {
  const socket = net.connect(consumer.port, "127.0.0.1");
  const connection = { socket, text: "", began: Date.now(), lasted: undefined };
  t.after(() => socket.destroy());
  socket.setEncoding("utf8");
  socket.on("data", (text) => (connection.text += text));
  socket.on("error", () => {});
  socket.on("close", () => (connection.lasted = Date.now() - connection.began));
  socket.write(bytes);
  return connection;
}

describe("deadlines", { skip: without("kafka"), concurrency: true }, () => {
  test("a silent connection and a half-sent request are closed after ten seconds, and new clients are served meanwhile", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const stream = await openEvents(t, `${consumer.url}/events`);
    const idlers = {
      "nothing at all": connect(t, consumer, ""),
      "half a request line": connect(t, consumer, "GET /eve"),
      "half a header": connect(t, consumer, "GET /events HTTP/1.1\r\nHost: herald\r\nX-Slow: "),
      "a header without its end": connect(t, consumer, "GET /ws HTTP/1.1\r\nHost: herald\r\nUpgrade: websocket\r\n"),
    };
    let served = 0;
    await until("all are closed", async () => {
      served += Number((await request(`${consumer.url}/config`)).status === 200);
      return Object.values(idlers).every(({ lasted }) => lasted !== undefined);
    });
    await publish(topic, ["still there"]);
    await stream.takes(1);

    for (const [what, { lasted, text }] of Object.entries(idlers)) {
      assert.ok(lasted > 9000 && lasted < 13_000, `${what}: closed after ${lasted} ms`);
      assert.ok(text === "" || text.startsWith("HTTP/1.1 408"), text);
    }
    assert.ok(served > 50, `${served} requests were served`);
    assert.equal(stream.ended, false);
    await t.test("and they are counted", async () => {
      const counted = () => consumer.metric("herald_connections_refused_total", 'reason="header"');
      await until("the count", async () => (await counted()) === 4, 3000);
    });
  });

  test("a reader that stops is ended as slow, the others do not notice, and it misses nothing when it comes back", async (t) => {
    const topic = await newTopic();
    // More than both ends of a connection hold for a reader that does not read.
    const backlog = texts("x".repeat(1000), 4000);
    await publish(topic, backlog);
    const consumer = await startConsumer(t, topic);
    const healthy = openSocket(t, consumer.ws);
    await healthy.takes("start");
    const live = [];
    /** Milliseconds from publishing one more message to its arrival at a reader that reads. */
    async function delay() {
      const began = performance.now();
      live.push(`live ${live.length}`);
      await publish(topic, [live.at(-1)]);
      await healthy.takes("message", live.length);
      return performance.now() - began;
    }
    const before = [];
    while (before.length < 50) {
      before.push(await delay());
    }

    const path = "/events?from=earliest&format=json";
    const sse = connect(t, consumer, `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1:${consumer.port}\r\n\r\n`);
    await until("the first bytes", () => sse.text.length > 0);
    sse.socket.pause();
    const websocket = openSocket(t, `${consumer.ws}?from=earliest`);
    await websocket.takes("message");
    websocket.socket.pause();
    const stopped = Date.now();

    const meanwhile = [];
    const slow = (transport) => consumer.metric("herald_streams_ended_total", `reason="slow",transport="${transport}"`);
    await until(
      "both are ended",
      async () => {
        meanwhile.push(await delay());
        return (await slow("sse")) === 1 && (await slow("websocket")) === 1;
      },
      30_000,
    );
    const lasted = Date.now() - stopped;
    assert.ok(lasted > 9000 && lasted < 20_000, `ended after ${lasted} ms`);
    assert.ok(median(meanwhile) < 2 * median(before) + 20, `${median(meanwhile)} ms instead of ${median(before)} ms to a reader that reads`);
    assert.ok(Math.max(...meanwhile) < 5000, `${Math.max(...meanwhile)} ms to a reader that reads`);
    assert.deepEqual(healthy.got("message").map(({ data }) => data), live);

    const all = [[...backlog, ...live]];
    await t.test("over server-sent events", async (t) => {
      sse.socket.resume();
      await until("the end of the stream", () => sse.lasted !== undefined);
      const got = [];
      const parser = createParser({ onEvent: (event) => event.event === undefined && got.push(JSON.parse(event.data)) });
      parser.feed(withoutChunks(sse.text.slice(sse.text.indexOf("\r\n\r\n") + 4)));
      assert.ok(got.length > 0 && got.length < backlog.length);
      const rest = await openEvents(t, `${consumer.url}${path}`, { headers: { "Last-Event-ID": got.at(-1).cursor } });
      await rest.takes(all[0].length - got.length);
      cameOnceInOrder([...got, ...rest.messages().map(({ data }) => JSON.parse(data))], all);
    });
    await t.test("over a WebSocket", async (t) => {
      websocket.socket.resume();
      await websocket.ends();
      const got = websocket.got("message");
      assert.ok(got.length < backlog.length);
      assert.ok([1006, 4408].includes(websocket.closed.code), String(websocket.closed.code));
      const rest = openSocket(t, `${consumer.ws}?after=${websocket.cursor()}`);
      await rest.takes("message", all[0].length - got.length);
      cameOnceInOrder([...got, ...rest.got("message")], all);
    });
    assert.equal(await slow("sse"), 1);
    assert.equal(await slow("websocket"), 1);
  });

  test("a reader that is slower than what the consumer keeps goes on from Kafka, over the same connection", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic, ["--ring-messages", "100", "--ring-time", "0s"]);
    const client = openSocket(t, consumer.ws);
    await client.takes("start");
    client.socket.pause();
    const sent = texts("x".repeat(1000), 3000);
    await publish(topic, sent);
    await until("it has been overrun", async () => (await consumer.metric("herald_messages_consumed_total", `topic="${topic}"`)) === sent.length);
    client.socket.resume();
    await client.takes("message", sent.length);
    cameOnceInOrder(client.got("message"), [sent]);
    assert.deepEqual([client.got("gap"), client.got("bye")], [[], []]);
  });
});

function median(numbers) {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

/** The body of a chunked answer, as far as it came. */
function withoutChunks(text) {
  let bytes = Buffer.from(text);
  const pieces = [];
  for (;;) {
    const end = bytes.indexOf("\r\n");
    const length = end < 0 ? 0 : parseInt(bytes.toString("latin1", 0, end), 16);
    if (!length) {
      return Buffer.concat(pieces).toString();
    }
    pieces.push(bytes.subarray(end + 2, end + 2 + length));
    bytes = bytes.subarray(end + 2 + length + 2);
  }
}
