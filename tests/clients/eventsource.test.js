// Server-sent events, with npm's eventsource: like a browser's, it comes back by itself, and only after 200.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { EventSource } from "eventsource";

import { startBalancer } from "./support/balancer.js";
import { startConsumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { cameOnceInOrder } from "./support/exactness.js";
import { openEvents } from "./support/http.js";
import { keepPublishing, newTopic, publish, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";

function open(t, url) {
  const source = new EventSource(url);
  const client = { source, messages: [], byes: [], starts: [], gaps: [] };
  t.after(() => source.close());
  source.addEventListener("message", ({ data, lastEventId }) => client.messages.push({ data, lastEventId }));
  for (const [event, list] of [["bye", client.byes], ["start", client.starts], ["gap", client.gaps]]) {
    source.addEventListener(event, ({ data }) => list.push(JSON.parse(data)));
  }
  client.takes = (count) => until(() => `${count} messages; there are ${client.messages.length}`, () => client.messages.length >= count);
  return client;
}

describe("eventsource", { skip: without("kafka"), concurrency: true }, () => {
  test("comes back by itself after the consumer was killed, and nothing is lost or doubled", async (t) => {
    const topic = await newTopic(3);
    const consumer = await startConsumer(t, topic);
    const text = open(t, `${consumer.url}/events`);
    const json = open(t, `${consumer.url}/events?format=json`);
    await until("both have begun", () => text.starts.length === 1 && json.starts.length === 1);
    const publishing = keepPublishing(topic, 3);
    await Promise.all([text.takes(30), json.takes(30)]);
    await consumer.kill();
    const whenKilled = publishing.count();
    await until("messages that nobody reads", () => publishing.count() > whenKilled + 30);
    await consumer.start();
    await until("both are back", () => text.starts.length === 2 && json.starts.length === 2);
    const whenBack = publishing.count();
    await until("messages for the clients that are back", () => publishing.count() > whenBack + 30);
    const sent = await publishing.stop();
    await Promise.all([text.takes(publishing.count()), json.takes(publishing.count())]);

    const objects = json.messages.map(({ data }) => JSON.parse(data));
    cameOnceInOrder(objects, sent);
    assert.ok(json.messages.every(({ lastEventId }, at) => lastEventId === objects[at].cursor));
    // The event does not contain its partition; the text of the record does.
    const partition = (data) => Number(data.split(" ")[1]) % 3;
    cameOnceInOrder(text.messages.map(({ data }) => ({ data, partition: partition(data) })), sent);
    assert.deepEqual([...text.gaps, ...json.gaps], []);
  });

  test("over the limit it is instructed to reconnect, does so when there is room, and the others are not affected", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic, ["--max-connections", "2"]);
    const inside = [await openEvents(t, `${consumer.url}/events`), await openEvents(t, `${consumer.url}/events`)];
    const outside = open(t, `${consumer.url}/events?from=earliest`);
    await until("it was rejected twice", () => outside.byes.length >= 2, 30_000);
    await publish(topic, ["while it is full"]);
    await Promise.all(inside.map((stream) => stream.takes(1)));
    assert.equal(outside.messages.length, 0);
    inside[0].close();
    await outside.takes(1);
    await publish(topic, ["when there was room"]);
    await outside.takes(2);
    await inside[1].takes(2);

    assert.ok(outside.byes.every(({ type, reason, retry }) => type === "bye" && reason === "overload" && retry > 0));
    assert.deepEqual(outside.messages.map(({ data }) => data), ["while it is full", "when there was room"]);
    assert.deepEqual(inside[1].named("bye"), []);
    assert.equal(inside[1].ended, false);
    assert.ok((await consumer.metric("herald_connections_refused_total", 'reason="overload"')) >= 2);
  });

  test("goes on with another replica when its own leaves, and nothing is lost or doubled", async (t) => {
    const topic = await newTopic();
    const leaving = await startConsumer(t, topic, ["--drain-delay", "500ms", "--drain-window", "500ms"]);
    const staying = await startConsumer(t, topic);
    const balancer = await startBalancer(t, [leaving, staying]);
    const clients = Array.from({ length: 8 }, () => open(t, `${balancer.url}/events`));
    const everyone = (what) => Promise.all(clients.map(what));
    await until("all have begun", () => clients.every(({ starts }) => starts.length === 1));
    const sent = texts("message", 30);
    await publish(topic, sent.slice(0, 10));
    await everyone((client) => client.takes(10));
    leaving.terminate();
    await publish(topic, sent.slice(10, 20));
    await until("each received a bye", () => clients.every(({ byes }) => byes.length > 0));
    await publish(topic, sent.slice(20));
    const [code] = await leaving.exited;
    await everyone((client) => client.takes(30));

    assert.equal(code, 0);
    for (const client of clients) {
      assert.deepEqual(client.messages.map(({ data }) => data), sent);
      assert.deepEqual(client.byes.map(({ reason }) => reason), ["drain"]);
      assert.equal(client.starts.length, 2);
    }
    assert.equal(new Set(clients.map(({ byes }) => byes[0].retry)).size > 1, true, "each comes back at a moment of its own");
  });
});
