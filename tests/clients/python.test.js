// python-socketio, over each way it can go.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { startConsumer } from "./support/consumer.js";
import { python, without } from "./support/environment.js";
import { newTopic, publish, texts } from "./support/kafka.js";
import { until } from "./support/wait.js";

const script = fileURLToPath(new URL("python/client.py", import.meta.url));

function connect(t, url, transports, auth) {
  const child = spawn(python, [script, url, transports, JSON.stringify(auth ?? null)], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(child, "exit");
  t.after(() => child.kill("SIGKILL"));
  const client = { text: "" };
  child.stdout.setEncoding("utf8").on("data", (text) => (client.text += text));
  client.events = () => client.text.split("\n").slice(0, -1).map((line) => JSON.parse(line));
  client.got = (name) => client.events().filter(({ event }) => event === name);
  client.takes = (name, count = 1) => until(() => `${count} ${name} among:\n${client.text.slice(-2000)}`, () => client.got(name).length >= count, 40_000);
  client.leave = async () => {
    child.stdin.end();
    const [code] = await exited;
    return code;
  };
  return client;
}

describe("python-socketio", { skip: without("kafka", "python"), concurrency: true }, () => {
  for (const transports of ["polling", "websocket", "polling,websocket"]) {
    test(`${transports}: a client receives topic, header and messages, and disconnects`, async (t) => {
      const topic = await newTopic();
      await publish(topic, texts("old", 700));
      const consumer = await startConsumer(t, topic, ["--custom-header", "Hello World Prod!"]);
      const client = connect(t, consumer.url, transports, { last: 300 });
      await client.takes("message", 300);
      await publish(topic, ["new"]);
      await client.takes("message", 301);

      assert.deepEqual(client.got("env").map(({ payload }) => payload), [{ data: topic }]);
      assert.deepEqual(client.got("custom_header").map(({ payload }) => payload), [{ data: "Hello World Prod!" }]);
      // Each event is handled in a thread of its own, so the library does not keep the order; the offsets give it.
      const messages = client.got("message").map(({ payload }) => payload);
      messages.sort((a, b) => a.offset - b.offset);
      assert.deepEqual(messages.map(({ data }) => data), [...texts("old", 700).slice(400), "new"]);
      assert.deepEqual(client.got("start").map(({ payload }) => payload.topic), [topic]);
      assert.equal(client.events().at(-1).transport, transports.split(",").at(-1));
      assert.equal(await client.leave(), 0);
      await until("the stream is not counted any more", async () => (await consumer.metric("herald_streams", 'transport="socketio"')) === 0);
    });

    test(`${transports}: a start that cannot be is refused with the reason`, async (t) => {
      const consumer = await startConsumer(t, await newTopic());
      const client = connect(t, consumer.url, transports, { last: 501 });
      await client.takes("connect_error");
      const [{ payload }, ...others] = client.events();
      assert.deepEqual([payload, others], [{ message: 'last is "501"; it must be a number from 0 to 500' }, []]);
    });
  }
});
