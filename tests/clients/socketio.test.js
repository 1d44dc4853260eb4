// socket.io-client, an old and a new one, over each way it can go.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { io as newest } from "socket.io-client";
import { io as oldest } from "socket.io-client-4.0";

import { startBalancer } from "./support/balancer.js";
import { startConsumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { cameOnceInOrder } from "./support/exactness.js";
import { keepPublishing, newTopic, publish, randomName, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";

const ways = [
  ["4.0, polling", oldest, ["polling"]],
  ["4.0, websocket", oldest, ["websocket"]],
  ["4.0, polling and then websocket", oldest, ["polling", "websocket"]],
  ["4.8, polling", newest, ["polling"]],
  ["4.8, websocket", newest, ["websocket"]],
  ["4.8, polling and then websocket", newest, ["polling", "websocket"]],
];

const EVENTS = ["env", "custom_header", "start", "message", "gap", "status", "bye"];

/** A client as in the documentation: it sends its newest cursor at every connect. */
function connect(t, io, url, { auth = {}, ...options } = {}) {
  let cursor;
  const socket = io(url, { forceNew: true, auth: (send) => send({ ...auth, ...(cursor && { after: cursor }) }), ...options });
  t.after(() => socket.close());
  const client = { socket, events: [], connects: 0, refusals: [], disconnects: [] };
  for (const name of EVENTS) {
    socket.on(name, (payload) => {
      client.events.push({ name, payload });
      cursor = payload.cursor ?? cursor;
    });
  }
  socket.on("connect", () => (client.connects += 1));
  socket.on("connect_error", (error) => client.refusals.push(error.message));
  socket.on("disconnect", (reason) => client.disconnects.push(reason));
  client.got = (name) => client.events.filter((event) => event.name === name).map(({ payload }) => payload);
  client.takes = (name, count = 1) =>
    until(() => `${count} ${name}; there are ${client.got(name).length}, and ${client.refusals}`, () => client.got(name).length >= count, 40_000);
  return client;
}

describe("socket.io-client", { skip: without("kafka"), concurrency: true }, () => {
  for (const [way, io, transports] of ways) {
    test(`${way}: each client receives topic and header once, and then the messages`, async (t) => {
      const topic = await newTopic();
      const consumer = await startConsumer(t, topic, ["--custom-header", "Hello World Dev!"]);
      const first = connect(t, io, consumer.url, { transports });
      await first.takes("start");
      const second = connect(t, io, consumer.url, { transports });
      await second.takes("start");
      if (transports.length === 2) {
        await until("the upgrade to websocket", () => first.socket.io.engine.transport.name === "websocket");
      }
      await publish(topic, ["Hello\tworld"]);
      await first.takes("message");
      await second.takes("message");

      for (const client of [first, second]) {
        assert.deepEqual(
          client.events.map(({ name }) => name),
          ["env", "custom_header", "start", "message"],
        );
        assert.deepEqual(client.got("env"), [{ data: topic }]);
        assert.deepEqual(client.got("custom_header"), [{ data: "Hello World Dev!" }]);
        const [start] = client.got("start");
        assert.deepEqual(start, { type: "start", cursor: start.cursor, topic });
        const [{ cursor, timestamp, ...message }] = client.got("message");
        assert.deepEqual(message, { data: "Hello\tworld", partition: 0, offset: 0 });
        assert.match(cursor, /^[A-Za-z0-9_-]+$/);
        assert.ok(Math.abs(Date.now() - timestamp) < 60_000);
        assert.deepEqual(client.disconnects, []);
      }
    });
  }

  for (const [version, io] of [["4.0", oldest], ["4.8", newest]]) {
    test(`${version}: three sockets of one page that know nothing of cursors are all served`, async (t) => {
      const topic = await newTopic();
      const consumer = await startConsumer(t, topic);
      await publish(topic, ["before anyone came"]);
      await until("it is read", async () => (await consumer.metric("herald_messages_consumed_total", `topic="${topic}"`)) === 1);
      // As the original's page does: no options, each socket for one of the three events.
      const got = { message: [], env: [], custom_header: [] };
      const sockets = Object.keys(got).map((event) => {
        const socket = io(consumer.url);
        t.after(() => socket.close());
        socket.on(event, ({ data }) => got[event].push(data));
        return socket;
      });
      await until("all three are connected and have received topic and header", () => got.env.length > 0 && got.custom_header.length > 0);
      await until("all three stream", async () => (await consumer.metric("herald_streams", 'transport="socketio"')) === 3);
      await until("a client of the original receives new messages", async () => {
        await publish(topic, [`after message ${got.message.length}`]);
        return got.message.length > 0;
      });

      assert.deepEqual(got.env, [topic]);
      assert.deepEqual(got.custom_header, ["default"]);
      assert.ok(got.message.every((data) => data.startsWith("after ")), String(got.message));
      assert.ok(sockets.every((socket) => socket.connected));
    });
  }

  test("every client comes back by itself after the consumer was killed, and nothing is lost or doubled", async (t) => {
    const topic = await newTopic(3);
    const consumer = await startConsumer(t, topic);
    const clients = new Map(ways.map(([way, io, transports]) => [way, connect(t, io, consumer.url, { transports })]));
    await Promise.all([...clients.values()].map((client) => client.takes("start")));
    const publishing = keepPublishing(topic, 3);
    await Promise.all([...clients.values()].map((client) => client.takes("message", 30)));
    await consumer.kill();
    const whenKilled = publishing.count();
    await until("messages that nobody reads", () => publishing.count() > whenKilled + 30);
    await consumer.start();
    await Promise.all([...clients.values()].map((client) => client.takes("start", 2)));
    const whenBack = publishing.count();
    await until("messages for the clients that are back", () => publishing.count() > whenBack + 30);
    const sent = await publishing.stop();

    for (const [way, client] of clients) {
      await t.test(way, async () => {
        await client.takes("message", publishing.count());
        cameOnceInOrder(client.got("message"), sent);
        assert.deepEqual(client.got("gap"), []);
      });
    }
  });

  test("a backlog of 5,000 messages arrives whole, in order, and its reader is not called slow", async (t) => {
    const topic = await newTopic();
    const backlog = texts("line", 5000);
    await publish(topic, backlog);
    const consumer = await startConsumer(t, topic, ["--ring-messages", "1000"]);
    for (const [way, io, transports] of ways) {
      await t.test(way, async (t) => {
        const client = connect(t, io, consumer.url, { transports, auth: { from: "earliest" } });
        await client.takes("message", backlog.length);
        await publish(topic, [`news for ${way}`]);
        backlog.push(`news for ${way}`);
        await client.takes("message", backlog.length);
        cameOnceInOrder(client.got("message"), [backlog]);
        assert.deepEqual([client.got("bye"), client.got("gap"), client.disconnects], [[], [], []]);
      });
    }
  });

  test("a draining replica sends bye to each client, which resumes on another replica", async (t) => {
    const topic = await newTopic();
    const leaving = await startConsumer(t, topic, ["--drain-delay", "1s", "--drain-window", "1s"]);
    const staying = await startConsumer(t, topic);
    const balancer = await startBalancer(t, [leaving, staying]);
    const clients = new Map(ways.map(([way, io, transports]) => [way, connect(t, io, balancer.url, { transports })]));
    const all = [...clients.values()];
    const everyone = (name, count) => Promise.all(all.map((client) => client.takes(name, count)));
    await everyone("start");
    await until("the clients that can are upgraded", () =>
      [...clients].every(([way, client]) => client.socket.io.engine.transport.name === (way.endsWith("polling") ? "polling" : "websocket")),
    );
    assert.equal(await staying.metric("herald_streams", 'transport="socketio"'), 0);
    const sent = texts("message", 30);
    await publish(topic, sent.slice(0, 10));
    await everyone("message", 10);
    leaving.terminate();
    await until("readiness is off", async () => (await leaving.readiness()) === 503);
    await publish(topic, sent.slice(10, 20));
    await everyone("bye");
    await publish(topic, sent.slice(20));
    const [code] = await leaving.exited;
    await everyone("start", 2);

    assert.equal(code, 0);
    for (const [way, client] of clients) {
      await t.test(way, async () => {
        await client.takes("message", sent.length);
        cameOnceInOrder(client.got("message"), [sent]);
        const [{ cursor, retry, ...bye }, ...more] = client.got("bye");
        assert.deepEqual([bye, more], [{ type: "bye", reason: "drain" }, []]);
        assert.ok(retry > 0);
        assert.equal(client.disconnects.includes("io server disconnect"), false);
      });
    }
  });

  for (const [way, io, transports] of ways) {
    test(`${way}: a start that cannot be is refused with the reason`, async (t) => {
      const topic = await newTopic();
      const consumer = await startConsumer(t, topic);
      const unknown = randomName("unknown");
      for (const [auth, sentence] of [
        [{ last: 501 }, 'last is "501"; it must be a number from 0 to 500'],
        [{ from: "yesterday" }, 'from is "yesterday"; it must be "earliest" or a time such as 2026-01-31T12:00:00Z'],
        [{ topic: unknown }, `topic "${unknown}" is not served here; these are: ${topic}`],
      ]) {
        const client = connect(t, io, consumer.url, { transports, auth });
        await until("a connect_error", () => client.refusals.length > 0);
        assert.equal(client.refusals[0], sentence);
        assert.deepEqual(client.events, []);
        assert.equal(client.connects, 0);
      }
    });
  }
});
