// Clients that hold as many connections as they can, and use them as slowly as they can. Others are served as before.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import net from "node:net";
import { describe, test } from "node:test";

import { startConsumer } from "./support/consumer.js";
import { sqlite } from "./support/databases.js";
import { kafkaAddress, withoutLong } from "./support/environment.js";
import { newTopic, publish } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { pause, until } from "./support/wait.js";

/** Another address of this machine than that of the flood. */
const ELSEWHERE = "127.0.0.2";

/** How long slowhttptest runs, in seconds: longer than a request may take to arrive. */
const SECONDS = 14;
const CONNECTIONS = 1000;

/** The status of a GET from elsewhere, and how long it took in milliseconds. */
async function visit(url) {
  const began = performance.now();
  const asked = http.get(url, { localAddress: ELSEWHERE, agent: false });
  const [response] = await once(asked, "response");
  response.resume();
  await once(response, "end");
  return { status: response.statusCode, milliseconds: performance.now() - began };
}

/** Visits these addresses in turn until `ended` is true, and checks that all were served, and as fast as before. */
async function servesOthers(urls, ended) {
  const visits = [];
  while (!ended() || visits.length < 10) {
    for (const url of urls) {
      visits.push(await visit(url));
    }
    await pause(50);
  }
  assert.deepEqual([...new Set(visits.map(({ status }) => status))], [200]);
  const times = visits.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b);
  const [median, longest] = [times[Math.floor(times.length / 2)], times.at(-1)];
  assert.ok(median < 100, `half of ${times.length} requests took more than ${median} ms`);
  assert.ok(longest < 5000, `a request took ${longest} ms`);
}

/** Runs slowhttptest; resolves when it ends. */
async function attack(t, ...options) {
  const args = ["-c", CONNECTIONS, "-r", 500, "-l", SECONDS, "-p", 2, ...options].map(String);
  const child = spawn("slowhttptest", args, { stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill());
  let said = "";
  child.stdout.on("data", (data) => (said = (said + data).slice(-4000)));
  const [code] = await once(child, "exit");
  assert.equal(code, 0, said);
  return said;
}

describe("slow clients", { skip: withoutLong("kafka", "slowhttptest") }, () => {
  test(`${CONNECTIONS} whose requests, bodies and reading take for ever leave the others alone`, async (t) => {
    const topic = await newTopic();
    await publish(topic, Array.from({ length: 500 }, (_, number) => `${number} ${"x".repeat(2000)}`));
    const consumer = await startConsumer(t, topic);
    const port = await freePort();
    const database = await sqlite();
    const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--events-topic", await newTopic()];
    const gateway = new Service("gateway", [...kafka, "--listen", `127.0.0.1:${port}`, "--publish-topics", topic, ...database.read], await freePort());
    t.after(async () => {
      await gateway.kill();
      await database.remove();
    });
    await gateway.start();
    const page = `http://127.0.0.1:${port}`;
    let ended = false;
    const attacks = [
      // Slow headers, a slow body, and slow reading.
      attack(t, "-H", "-i", 5, "-t", "GET", "-u", `${consumer.url}/events`),
      attack(t, "-B", "-i", 5, "-s", 8192, "-t", "POST", "-u", `${page}/topics/${topic}/messages`),
      attack(t, "-X", "-w", 10, "-y", 20, "-n", 5, "-z", 32, "-k", 1, "-u", `${consumer.url}/messages?from=earliest&limit=500`),
    ];
    const all = Promise.all(attacks).finally(() => (ended = true));
    await Promise.all([all, servesOthers([`${consumer.url}/config`, `${consumer.url}/messages?limit=10`, `${page}/`], () => ended)]);
    assert.ok((await consumer.metric("herald_connections_refused_total", 'reason="header"')) >= CONNECTIONS / 2, "slow requests are ended");
    await until("they hold nothing", async () => (await consumer.metric("herald_connections")) === 0, 30_000);
  });
});

test("5,000 connections from one address leave the others alone", { skip: withoutLong("kafka") }, async (t) => {
  const [COUNT, LIMIT] = [5000, 100];
  const topic = await newTopic();
  const consumer = await startConsumer(t, topic, ["--max-connections-per-address", String(LIMIT)]);
  const sockets = [];
  t.after(() => sockets.forEach((socket) => socket.destroy()));
  // Answered with a stream or that there are too many, or closed.
  const answered = new Set();
  let ended = false;
  const flood = (async () => {
    for (let number = 0; number < COUNT; number += 1) {
      const socket = net.connect(consumer.port, "127.0.0.1");
      sockets.push(socket);
      socket.on("error", () => {});
      for (const event of ["data", "close"]) socket.once(event, () => answered.add(socket));
      socket.write("GET /events HTTP/1.1\r\nHost: herald\r\n\r\n");
      if (number % 100 === 99) await pause(20);
    }
    await until(() => `each is answered; ${answered.size} are`, () => answered.size === COUNT, 60_000);
    await pause(1000);
  })().finally(() => (ended = true));
  await Promise.all([flood, servesOthers([`${consumer.url}/config`, `${consumer.url}/messages`], () => ended)]);
  assert.equal(await consumer.metric("herald_streams", 'transport="sse"'), LIMIT);
});
