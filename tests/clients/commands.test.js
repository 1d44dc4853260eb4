// The command line: curl reads the consumer, kcat reads what the producer writes.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, test } from "node:test";

import { startConsumer } from "./support/consumer.js";
import { kafkaAddress, without } from "./support/environment.js";
import { newTopic, publish, randomName } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { run } from "./support/service.js";
import { until } from "./support/wait.js";

/** Runs a command for the length of the test; `text` is what it has written so far. */
function start(t, command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  const running = { text: "", exited: once(child, "exit") };
  child.stdout.setEncoding("utf8").on("data", (text) => (running.text += text));
  t.after(() => child.kill("SIGKILL"));
  return running;
}

async function startProducer(t, topic) {
  const producer = run("producer", [
    ...["--admin-listen", `127.0.0.1:${await freePort()}`],
    ...["--kafka-bootstrap-servers", kafkaAddress, "--kafka-topic", topic],
    ...["--interval-min", "20ms", "--interval-max", "40ms"],
  ]);
  producer.stdout.resume();
  producer.stderr.resume();
  t.after(async () => {
    producer.kill("SIGKILL");
    await once(producer, "exit");
  });
}

const GREETING = /^Hello world from dev producer - \d\d:\d\d:\d\d\t\S.*$/;

test("curl -N shows messages as they come", { skip: without("kafka", "curl") }, async (t) => {
  const topic = await newTopic();
  const consumer = await startConsumer(t, topic);
  const curl = start(t, "curl", ["-sN", `${consumer.url}/events`]);
  await until("the start", () => curl.text.includes("event: start"));
  for (const line of ["first", "second", "third"]) {
    await publish(topic, [`${line} line`]);
    await until(`${line} line, alone and at once`, () => curl.text.endsWith(`data: ${line} line\n\n`), 5000);
  }
});

describe("the producer", { skip: without("kafka", "kcat", "curl"), concurrency: true }, () => {
  test("writes to a topic that it makes, and kcat sees text and headers", async (t) => {
    const topic = randomName("dev");
    await startProducer(t, topic);
    const read = async () => {
      const kcat = start(t, "kcat", ["-C", "-q", "-b", kafkaAddress, "-t", topic, "-o", "beginning", "-c", "3", "-J"]);
      const [code] = await kcat.exited;
      return code === 0 && kcat.text.trim().split("\n").length === 3 && kcat.text;
    };
    const lines = (await until("kcat reads three messages", read)).trim().split("\n");
    const records = lines.map((line) => JSON.parse(line));

    for (const [offset, record] of records.entries()) {
      assert.deepEqual([record.topic, record.partition, record.offset, record.key], [topic, 0, offset, null]);
      assert.match(record.payload, GREETING);
      // kcat writes names and values as one list.
      const names = record.headers.filter((_, at) => at % 2 === 0);
      const headers = Object.fromEntries(names.map((name, at) => [name, record.headers[2 * at + 1]]));
      assert.equal(names.length, Object.keys(headers).length, "each header once");
      const { ce_id, ce_time, traceparent, ...fixed } = headers;
      assert.deepEqual(fixed, {
        ce_specversion: "1.0",
        ce_source: "/herald/dev/producer",
        ce_type: "herald.broadcast",
        "content-type": "text/plain; charset=utf-8",
      });
      assert.match(ce_id, /^\S+$/);
      assert.match(traceparent, /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]$/);
      // The producer runs with TZ=UTC, so its local time is that of ce_time.
      assert.equal(new Date(ce_time).toISOString().slice(11, 19), record.payload.slice(32, 40));
      assert.equal(new Date(ce_time).getTime(), record.ts);
    }
    assert.equal(new Set(records.map(({ headers }) => headers[headers.indexOf("ce_id") + 1])).size, 3);
  });

  test("is delivered by the consumer, live", async (t) => {
    const topic = randomName("dev");
    await startProducer(t, topic);
    const consumer = await startConsumer(t, topic);
    const curl = start(t, "curl", ["-sN", `${consumer.url}/events`]);
    const spoken = () => [...curl.text.matchAll(/^data: (Hello .*)$/gm)].map(([, text]) => text);
    await until("ten greetings", () => spoken().length >= 10);
    assert.ok(spoken().every((text) => GREETING.test(text)), spoken().join("\n"));
  });
});
