// The WebSocket transport, with npm's ws.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { startBalancer } from "./support/balancer.js";
import { startConsumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { cameOnceInOrder } from "./support/exactness.js";
import { openEvents } from "./support/http.js";
import { newTopic, publish, randomName, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

describe("ws", { skip: without("kafka"), concurrency: true }, () => {
  test("frames are JSON texts, and start is the first", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const client = openSocket(t, consumer.ws);
    await client.takes("start");
    await publish(topic, [{ key: "k", value: "Hello\tworld", headers: { ce_id: "1" } }]);
    await client.takes("message");

    assert.deepEqual(client.frames.map(({ type }) => type), ["start", "message"]);
    assert.deepEqual(client.frames[0], { type: "start", cursor: client.frames[0].cursor, topic });
    const { cursor, timestamp, ...message } = client.frames[1];
    assert.deepEqual(message, { type: "message", partition: 0, offset: 0, key: "k", headers: { ce_id: "1" }, data: "Hello\tworld" });
    assert.match(cursor, /^[A-Za-z0-9_-]+$/);
    assert.ok(Math.abs(Date.now() - timestamp) < 60_000);
    assert.equal(client.binary, 0);
  });

  test("a client that hands back its newest cursor goes on where it was, also before its first message", async (t) => {
    const topic = await newTopic(3);
    const consumer = await startConsumer(t, topic);
    const sent = [0, 1, 2].map((partition) => texts(`p${partition}`, 60));
    const piece = (from, to) => sent.flatMap((values, partition) => values.slice(from, to).map((value) => ({ partition, value })));
    const first = openSocket(t, consumer.ws);
    await first.takes("start");
    first.socket.terminate();
    await publish(topic, piece(0, 20));
    const second = openSocket(t, `${consumer.ws}?after=${first.cursor()}`);
    await second.takes("message", 60);
    await publish(topic, piece(20, 40));
    await second.takes("message", 61);
    second.socket.terminate();
    await second.ends();
    await publish(topic, piece(40, 60));
    const third = openSocket(t, `${consumer.ws}?after=${second.cursor()}`);
    await third.takes("message", 180 - second.got("message").length);

    cameOnceInOrder([...second.got("message"), ...third.got("message")], sent);
    assert.deepEqual([...second.got("gap"), ...third.got("gap")], []);
  });

  test("300 messages that wait for a reader arrive in order", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const client = openSocket(t, consumer.ws);
    await client.takes("start");
    client.socket.pause();
    const sent = texts("message", 300);
    await publish(topic, sent);
    const other = openSocket(t, `${consumer.ws}?from=earliest`);
    await other.takes("message", 300);
    assert.equal(client.got("message").length, 0);
    client.socket.resume();
    await client.takes("message", 300);
    cameOnceInOrder(client.got("message"), [sent]);
    cameOnceInOrder(other.got("message"), [sent]);
  });

  test("an invalid request is closed with 4400 and the reason", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const unknown = randomName("unknown");
    for (const [query, detail] of [
      ["last=501", 'last is "501"; it must be a number from 0 to 500'],
      ["from=yesterday", 'from is "yesterday"; it must be "earliest" or a time such as 2026-01-31T12:00:00Z'],
      [`topic=${unknown}`, `topic "${unknown}" is not served here; these are: ${topic}`],
      ["binary=hex", 'binary is "hex"; it must be base64'],
    ]) {
      const client = openSocket(t, `${consumer.ws}?${query}`);
      const { code } = await client.ends();
      const [{ retry, ...bye }] = client.frames;
      assert.deepEqual([client.frames.length, bye], [1, { type: "bye", reason: "invalid", detail }]);
      assert.equal(code, 4400);
    }
  });

  test("a frame of 4 KiB is read and ignored, a larger one closes with 1009", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const client = openSocket(t, consumer.ws);
    await client.takes("start");
    client.socket.send("x".repeat(4096));
    client.socket.send(Buffer.alloc(4096));
    await publish(topic, ["still there"]);
    await client.takes("message");
    client.socket.send("x".repeat(4097));
    assert.equal((await client.ends()).code, 1009);
  });

  test("a client that closes is answered with 1000", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic);
    const client = openSocket(t, consumer.ws);
    await client.takes("start");
    client.socket.close(1000);
    assert.equal((await client.ends()).code, 1000);
    await until("the stream is not counted any more", async () => (await consumer.metric("herald_streams", 'transport="websocket"')) === 0);
  });

  test("over the limit of connections a client is closed with 1013 and the reason", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic, ["--max-connections", "1"]);
    await openEvents(t, `${consumer.url}/events`);
    const client = openSocket(t, consumer.ws);
    assert.equal((await client.ends()).code, 1013);
    const [{ retry, ...bye }] = client.frames;
    assert.deepEqual(bye, { type: "bye", reason: "overload" });
    assert.ok(retry > 0);
  });

  test("a draining replica sends bye, closes with 1012, and another one continues without a gap", async (t) => {
    const topic = await newTopic();
    const leaving = await startConsumer(t, topic, ["--drain-delay", "500ms", "--drain-window", "500ms"]);
    const staying = await startConsumer(t, topic);
    const balancer = await startBalancer(t, [leaving, staying]);
    const sent = texts("message", 30);
    const first = openSocket(t, balancer.ws);
    await first.takes("start");
    await publish(topic, sent.slice(0, 10));
    await first.takes("message", 10);
    leaving.terminate();
    await publish(topic, sent.slice(10, 20));
    assert.deepEqual(await first.ends(), { code: 1012, reason: "drain" });
    await publish(topic, sent.slice(20));
    const second = openSocket(t, `${balancer.ws}?after=${first.cursor()}`);
    await second.takes("message", 30 - first.got("message").length);

    const { retry, cursor, ...bye } = first.frames.at(-1);
    assert.deepEqual(bye, { type: "bye", reason: "drain" });
    assert.ok(retry > 0 && cursor);
    cameOnceInOrder([...first.got("message"), ...second.got("message")], [sent]);
  });
});
