// TLS and HTTP/2 of the services themselves, with common clients.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import https from "node:https";
import path from "node:path";
import tls from "node:tls";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";

import { io } from "socket.io-client";

import { startConsumer } from "./support/consumer.js";
import { sqlite } from "./support/databases.js";
import { kafkaAddress, without } from "./support/environment.js";
import { request } from "./support/http.js";
import { newTopic, publish, texts } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { fetchOver, folderOf, newCertificate, openEventsOver, openSession } from "./support/tls.js";
import { pause, until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

const run = promisify(execFile);
const ROOM = "my-video";

/** A consumer with TLS and its certificate. They end with the test. */
async function startSecure(t, topics, options = []) {
  const folder = folderOf(t);
  const certificate = newCertificate(folder);
  const consumer = await startConsumer(t, topics, [...certificate.options, ...options]);
  return { folder, certificate, consumer, url: `https://127.0.0.1:${consumer.port}` };
}

/** The version of HTTP and the status that curl gets. An endless stream is cut after two seconds. */
async function curl(version, ca, url, ...options) {
  const written = "%{http_version} %{http_code}";
  const args = ["-s", "-m", "2", "-o", "/dev/null", "-w", written, `--http${version}`, "--cacert", ca, ...options, url];
  const { stdout } = await run("curl", args).catch((error) => {
    const CUT = 28;
    return error.code === CUT ? error : Promise.reject(error);
  });
  return stdout;
}

describe("every endpoint over TLS", { skip: without("kafka", "curl", "openssl") }, () => {
  const all = {};
  const endings = [];
  const context = { after: (ending) => endings.push(ending) };
  after(async () => {
    for (const ending of endings.toReversed()) {
      await ending();
    }
  });
  before(async () => {
    const folder = folderOf(context);
    all.certificate = newCertificate(folder);
    const [topic, events, likes, partitioned, foods] = await Promise.all(Array.from({ length: 5 }, () => newTopic()));
    const [one, five, ten] = await Promise.all(Array.from({ length: 3 }, () => newTopic()));
    const [rooms, main, likesPort, counts] = [await freePort(), await freePort(), await freePort(), await freePort()];
    const results = [["1", one], ["5", five], ["10", ten]].flatMap(([of, name]) => [`--likes-${of}-min-aggregation-topic-name`, name]);
    const options = [...all.certificate.options, "--rooms", "--rooms-listen", `127.0.0.1:${rooms}`, ...results];
    all.consumer = await startConsumer(context, topic, options);
    const database = await sqlite();
    const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--events-topic", events];
    const counted = ["--projections", "sessions,counts", "--counts-topic", foods];
    const projector = new Service("projector", [...kafka, ...counted, "--group-prefix", topic, ...database.written], await freePort());
    const windows = ["--windows", `1m=${one},5m=${five},10m=${ten}`, "--likes-topic", likes, "--partitioned-likes-topic", partitioned];
    const also = ["--likes-listen", `127.0.0.1:${likesPort}`, "--counts-listen", `127.0.0.1:${counts}`];
    const listen = ["--listen", `127.0.0.1:${main}`, "--publish-topics", topic, ...also, ...all.certificate.options];
    all.gateway = new Service("gateway", [...kafka, ...listen, ...windows, ...database.read], await freePort());
    context.after(async () => {
      await Promise.all([all.gateway.kill(), projector.kill()]);
      await database.remove();
    });
    await Promise.all([all.gateway.start(), projector.start()]);
    const at = (port) => `https://localhost:${port}`;
    Object.assign(all, { topic, main: at(main), likes: at(likesPort), counts: at(counts), rooms: at(rooms), pages: at(all.consumer.port) });
  });

  const POST = (body = "{}") => ["-X", "POST", "-d", body];
  const endpoints = {
    "GET /": ["pages", "/", 200],
    "HEAD /": ["pages", "/", 200, ["-I"]],
    "GET /client.js": ["pages", "/client.js", 200],
    "GET /openapi.json": ["pages", "/openapi.json", 200],
    "GET /config": ["pages", "/config", 200],
    "GET /events": ["pages", "/events", 200],
    "GET /messages": ["pages", "/messages", 200],
    "Socket.IO, polling": ["pages", "/socket.io/?EIO=4&transport=polling", 200],
    "rooms, polling": ["rooms", "/socket.io/?EIO=4&transport=polling", 200],
    "/ws without a handshake": ["pages", "/ws", 426],
    "nothing": ["pages", "/nothing", 404],
    "the gateway's page": ["main", "/", 200],
    "GET /data": ["main", "/data?session_id=none", 404],
    "GET /aggregated": ["main", "/aggregated", 200],
    "GET /aggregated/stream": ["main", "/aggregated/stream", 200],
    "POST likes": ["main", `/videos/${ROOM}/likes`, 200, POST()],
    "GET /windows/stream": ["main", `/windows/stream?video=${ROOM}`, 200],
    "GET /videos/metadata": ["main", "/videos/metadata", 200],
    "/websocket without a handshake": ["main", "/websocket?session_id=a", 426],
    "likes alone": ["likes", "/videos/metadata", 200],
    "counts alone": ["counts", "/aggregated", 200],
  };
  for (const [what, [of, address, status, options = []]] of Object.entries(endpoints)) {
    test(what, async () => {
      const url = `${all[of]}${address}`;
      const [over2, over1] = await Promise.all(["2", "1.1"].map((version) => curl(version, all.certificate.cert, url, ...options)));
      assert.deepEqual([over2, over1], [`2 ${status}`, `1.1 ${status}`]);
    });
  }

  test("POST /topics/…/messages, with a body of many frames", async () => {
    const file = path.join(path.dirname(all.certificate.cert), "body");
    writeFileSync(file, "x".repeat(200_000));
    for (const version of ["2", "1.1"]) {
      const url = `${all.main}/topics/${all.topic}/messages`;
      assert.equal(await curl(version, all.certificate.cert, url, ...POST(`@${file}`)), `${version} 200`);
    }
  });

  test("the admin port stays plain", async () => {
    assert.equal((await request(`${all.gateway.admin}/readyz`)).status, 200);
    assert.equal((await request(`${all.consumer.admin}/metrics`)).status, 200);
  });

  test("session events over WebSocket", async (t) => {
    const { ca } = all.certificate;
    const socket = openSocket(t, `${all.main.replace("https", "wss")}/websocket?session_id=secure&ack=1`, { ca });
    await once(socket.socket, "open");
    socket.socket.send("not JSON");
    await until("an answer", () => socket.frames.length > 0);
  });

  for (const transports of [["polling"], ["websocket"], ["polling", "websocket"]]) {
    test(`Socket.IO by ${transports.join(", then ")}`, async (t) => {
      const { ca } = all.certificate;
      const socket = io(all.pages, { transports, ca, forceNew: true });
      t.after(() => socket.close());
      const received = [];
      socket.on("message", (message) => received.push(message));
      await once(socket, "connect");
      if (transports.length === 2) {
        await until("the upgrade", () => socket.io.engine.transport.name === "websocket");
      }
      const text = `by ${transports}`;
      await publish(all.topic, [text]);
      await until("the message", () => received.some((message) => JSON.stringify(message).includes(text)));
      const room = io(all.rooms, { transports, ca, forceNew: true });
      t.after(() => room.close());
      await once(room, "connect");
    });
  }
});

describe("TLS", { skip: without("kafka", "openssl"), concurrency: true }, () => {
  test("nothing older than TLS 1.3 is accepted, and a client without TLS is told to use it", async (t) => {
    const { consumer, certificate, url } = await startSecure(t, await newTopic());
    const socket = tls.connect({ port: consumer.port, host: "127.0.0.1", ca: certificate.ca, maxVersion: "TLSv1.2" });
    const [error] = await once(socket, "error");
    assert.match(error.message, /protocol version/);
    const answer = await request(url.replace("https", "http"));
    assert.equal(answer.status, 400);
    assert.match(answer.json.error, /https:\/\//);
    const refused = () => consumer.metric("herald_connections_refused_total", 'reason="tls"');
    await until("both are counted", async () => (await refused()) === 2);
  });

  test("WebSocket frames come at once", async (t) => {
    const topic = await newTopic();
    const { consumer, certificate } = await startSecure(t, topic);
    const socket = openSocket(t, `wss://127.0.0.1:${consumer.port}/ws`, { ca: certificate.ca });
    await socket.takes("start");
    const sent = texts("frame", 200);
    await publish(topic, sent);
    await socket.takes("message", sent.length);
    assert.deepEqual(socket.got("message").map(({ data }) => data), sent);
  });

  test("many streams share one connection, and each receives every message", async (t) => {
    const topic = await newTopic();
    const { consumer, certificate, url } = await startSecure(t, topic);
    const session = await openSession(t, url, certificate.ca);
    const streams = await Promise.all(Array.from({ length: 20 }, () => openEventsOver(t, session, "/events")));
    const sent = texts("shared", 300);
    await publish(topic, sent);
    await until("all have come", () => streams.every((stream) => stream.texts().length >= sent.length));
    for (const stream of streams) {
      assert.deepEqual(stream.texts(), sent);
      assert.equal(stream.headers.connection, undefined);
    }
    assert.equal(await consumer.metric("herald_connections"), streams.length);
    // Cancelled ones leave the others alone.
    streams.slice(1).forEach(({ request }) => request.close());
    await until("the others have ended", async () => (await consumer.metric("herald_connections")) === 1);
    await publish(topic, ["after"]);
    await until("the one that is left receives it", () => streams[0].texts().length === sent.length + 1);
  });

  test("a certificate is replaced while streams are open, and one that cannot be used is not taken", async (t) => {
    const topic = await newTopic();
    const { folder, certificate, consumer, url } = await startSecure(t, topic);
    const { port } = consumer;
    /** Whether a new client is shown this certificate. */
    const shows = (ca) =>
      new Promise((resolve) => {
        const asked = https.get(`${url}/config`, { ca, agent: false }, (response) => (response.resume(), resolve(true)));
        asked.on("error", () => resolve(false));
      });
    const session = await openSession(t, url, certificate.ca);
    const streams = await Promise.all(Array.from({ length: 3 }, () => openEventsOver(t, session, "/events")));
    const socket = openSocket(t, `wss://127.0.0.1:${port}/ws`, { ca: certificate.ca });
    await socket.takes("start");
    const sent = texts("replaced", 60);
    const publishing = (async () => {
      for (const text of sent) {
        await publish(topic, [text]);
        await pause(100);
      }
    })();

    const key = readFileSync(certificate.key);
    const next = newCertificate(folder);
    await until("the next certificate is shown", () => shows(next.ca));
    assert.equal(await shows(certificate.ca), false);
    writeFileSync(next.key, key); // of the certificate before
    await until("the key that does not fit is logged", () => consumer.log.includes("the key does not belong to the first certificate"));
    assert.equal(await shows(next.ca), true);
    writeFileSync(next.cert, "broken");
    await until("the broken certificate is logged", () => consumer.log.includes("contains no certificate"));
    assert.equal(await shows(next.ca), true);
    const last = newCertificate(folder);
    await until("the last certificate is shown", () => shows(last.ca));

    await publishing;
    await until("all have come", () => streams.every((stream) => stream.texts().length >= sent.length));
    await socket.takes("message", sent.length);
    streams.forEach((stream) => assert.deepEqual(stream.texts(), sent));
    assert.deepEqual(socket.got("message").map(({ data }) => data), sent);
  });

  test("a stream that is not read ends alone, as slow", async (t) => {
    const topic = await newTopic();
    const { consumer, certificate, url } = await startSecure(t, topic);
    const session = await openSession(t, url, certificate.ca);
    const [unread, ...read] = await Promise.all(Array.from({ length: 4 }, () => openEventsOver(t, session, "/events")));
    unread.request.pause();
    const sent = texts("large", 40).map((text) => `${text} ${"x".repeat(100_000)}`);
    await publish(topic, sent);
    await until("the others have all", () => read.every((stream) => stream.texts().length === sent.length));
    const slow = () => consumer.metric("herald_streams_ended_total", 'reason="slow",transport="sse"');
    await until("it has ended", async () => (await slow()) === 1);
    await until("its client is notified", () => unread.reset !== undefined || (unread.request.resume(), false));
    assert.equal(unread.reset, 8);
    assert.ok(unread.texts().length < sent.length);
    await publish(topic, ["after"]);
    await until("the others continue", () => read.every((stream) => stream.texts().at(-1) === "after"));
    assert.equal(await slow(), 1);
  });

  test("each stream counts towards the cap", async (t) => {
    const { consumer, certificate, url } = await startSecure(t, await newTopic(), ["--max-connections", "3"]);
    const session = await openSession(t, url, certificate.ca);
    const open = () => openEventsOver(t, session, "/events");
    const streams = [await open(), await open(), await open()];
    const over = await open();
    assert.equal(over.named("bye")[0].reason, "overload");
    const page = await fetchOver(session, "/config");
    assert.equal(page.status, 503);
    assert.equal(page.headers["retry-after"], "2");
    assert.equal(await consumer.metric("herald_connections_refused_total", 'reason="overload"'), 2);
    streams[0].request.close();
    await until("there is room", async () => (await consumer.metric("herald_connections")) === 2);
    assert.equal((await open()).named("start").length, 1);
  });

  test("a replica that shuts down ends every stream with its reason", async (t) => {
    const topic = await newTopic();
    const drain = ["--drain-delay", "5s", "--drain-window", "2s"];
    const { consumer, certificate, url } = await startSecure(t, topic, drain);
    const session = await openSession(t, url, certificate.ca);
    const streams = await Promise.all(Array.from({ length: 12 }, () => openEventsOver(t, session, "/events")));
    const left = once(session, "goaway");
    consumer.terminate();
    await left;
    await publish(topic, ["last"]);
    await once(session, "close");
    for (const stream of streams) {
      assert.deepEqual(stream.texts(), ["last"]);
      assert.equal(stream.named("bye")[0].reason, "drain");
      assert.deepEqual([stream.ended, stream.reset], [true, 0]);
    }
    const [code] = await consumer.exited;
    assert.equal(code, 0);
  });

  test("options that do not belong together are one sentence", async (t) => {
    const certificate = newCertificate(folderOf(t));
    const started = startConsumer(t, await newTopic(), certificate.options.slice(0, 2));
    await assert.rejects(started, /ended with 2:\nerror: --tls-cert needs --tls-key; set both, or neither/);
  });
});
