// Wrong input is one clear line and an exit. That Kafka is not up yet is no mistake.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { describe, test } from "node:test";

import { startBroker } from "./support/broker.js";
import { Consumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { openEvents, request } from "./support/http.js";
import { randomName } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { run } from "./support/service.js";
import { until } from "./support/wait.js";

/** Runs a program until it ends by itself: its exit code, and what it wrote to stderr. */
async function fail(t, name, args, environment) {
  const addresses = { "--admin-listen": "127.0.0.1:0", ...(name === "consumer" && { "--listen": "127.0.0.1:0" }) };
  const others = Object.entries(addresses).filter(([option]) => !args.includes(option));
  const child = run(name, [...others.flat(), ...args], environment);
  t.after(() => child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (text) => (stderr += text));
  child.stdout.resume();
  const [code] = await once(child, "close", { signal: AbortSignal.timeout(20_000) });
  return { code, lines: stderr.split("\n").filter(Boolean) };
}

const mistakes = [
  ["an unknown option", ["--kafka-topics", "a"], {}, "--kafka-topics"],
  ["a broker without a port", ["--kafka-bootstrap-servers", "localhost"], {}, "localhost"],
  ["a broker with a wrong port", ["--kafka-bootstrap-servers", "localhost:99999"], {}, "localhost:99999"],
  ["a broker with a scheme", ["--kafka-bootstrap-servers", "http://localhost:9092"], {}, "http://localhost:9092"],
  ["a line of KAFKA_PROPERTIES without =", [], { KAFKA_PROPERTIES: "linger.ms=5\nsecurity.protocol" }, "KAFKA_PROPERTIES: line 2"],
  ["a Kafka property that does not exist", [], { KAFKA_PROPERTIES: "linger.sm=5" }, "linger.sm"],
  ["a Kafka property with a wrong value", [], { KAFKA_PROPERTIES: "socket.keepalive.enable=perhaps" }, "socket.keepalive.enable"],
  ["a file of properties that is not there", ["--kafka-properties-file", "/nowhere/kafka.properties"], {}, "/nowhere/kafka.properties"],
  ["a wrong name of a topic", ["--kafka-topic", "my topic"], {}, "my topic"],
  ["an address without a port", ["--admin-listen", "localhost"], {}, "localhost"],
  ["a wrong duration", ["--shutdown-grace", "soon"], {}, "soon"],
  ["a wrong level of the log", ["--log-level", "loud"], {}, "loud"],
];

const mistakesOf = {
  consumer: [
    ...mistakes,
    ["no topic", ["--kafka-topic", ""], {}, "--kafka-topic"],
    ["a topic that is named twice", ["--kafka-topic", "a,b,a"], {}, '"a"'],
    ["an origin that is none", ["--allowed-origins", "app.example"], {}, "app.example"],
    ["no connections", ["--max-connections", "0"], {}, "--max-connections"],
  ],
  producer: [
    ...mistakes,
    ["pauses that end before they begin", ["--interval-min", "2s", "--interval-max", "1s"], {}, "interval"],
    ["no partitions", ["--topic-partitions", "0"], {}, "--topic-partitions"],
  ],
};

describe("wrong input", { concurrency: 4 }, () => {
  for (const [name, cases] of Object.entries(mistakesOf)) {
    for (const [what, args, environment, named] of cases) {
      test(`${name}: ${what} is one line that names it, and exit code 2`, async (t) => {
        const { code, lines } = await fail(t, name, args, environment);
        assert.equal(lines.length, 1, lines.join("\n"));
        assert.match(lines[0], /^error: /);
        assert.ok(lines[0].includes(named), lines[0]);
        assert.equal(code, 2);
      });
    }
  }

  for (const [name, option] of [["consumer", "--listen"], ["consumer", "--admin-listen"], ["producer", "--admin-listen"]]) {
    test(`${name}: a port of ${option} that is in use is one line that names it, and an exit code`, async (t) => {
      const server = net.createServer().listen(0, "127.0.0.1");
      t.after(() => server.close());
      await once(server, "listening");
      const taken = `127.0.0.1:${server.address().port}`;
      const { code, lines } = await fail(t, name, [option, taken]);
      assert.equal(lines.length, 1, lines.join("\n"));
      assert.ok(lines[0].includes(taken), lines[0]);
      assert.notEqual(code, 0);
    });
  }
});

test("a Kafka that is not up yet is waited for, which is reported once, to operators and to clients", { skip: without("jars") }, async (t) => {
  const port = await freePort();
  const kafka = ["--kafka-bootstrap-servers", `127.0.0.1:${port}`];
  const topic = randomName("dev");
  const consumer = new Consumer([topic], [...kafka, "--log-format", "json"], await freePort(), await freePort());
  t.after(() => consumer.kill());
  consumer.spawn();
  const adminPort = await freePort();
  const producer = run("producer", [...kafka, "--kafka-topic", topic, "--interval-max", "1s", "--admin-listen", `127.0.0.1:${adminPort}`, "--log-format", "json"]);
  let log = "";
  producer.stdout.on("data", (text) => (log += text));
  producer.stderr.on("data", (text) => (log += text));
  t.after(() => producer.kill("SIGKILL"));
  const speaks = async () => (await request(`http://127.0.0.1:${adminPort}/readyz`).catch(() => undefined))?.status;
  const complaints = (log) => log.split("\n").filter(Boolean).map((line) => JSON.parse(line)).filter(({ level }) => level !== "INFO");

  await until("both answer that they are not ready", async () => (await consumer.readiness()) === 503 && (await speaks()) === 503);
  await until("both log that Kafka is unreachable", () => complaints(consumer.log).length > 0 && complaints(log).length > 0);
  const page = await request(`${consumer.url}/messages`);
  assert.equal(page.status, 503);
  assert.match(page.headers["retry-after"], /^\d+$/);
  assert.equal((await request(`${consumer.url}/config`)).status, 200);
  const opened = openEvents(t, `${consumer.url}/events`);

  await startBroker(t, port);
  await until("both are ready", async () => (await consumer.readiness()) === 200 && (await speaks()) === 200, 60_000);
  const stream = await opened;
  await stream.takes(1);
  await until("it is notified that Kafka is back", () => stream.named("status").length > 1);
  const [{ since, ...down }, ...more] = stream.named("status");
  assert.deepEqual(down, { type: "status", source: "down", reason: "Kafka does not answer" });
  assert.ok(Date.parse(since) <= Date.now());
  assert.deepEqual(more.map(({ source }) => source), ["up"]);
  assert.deepEqual(stream.named("gap"), []);
  for (const said of [complaints(consumer.log), complaints(log)]) {
    assert.equal(said.length, 1, JSON.stringify(said, null, 1));
  }
});
