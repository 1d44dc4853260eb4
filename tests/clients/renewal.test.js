// Keys, certificates and tokens are replaced under 200 live streams of all transports.

import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, writeFileSync } from "node:fs";
import https from "node:https";
import path from "node:path";
import { test } from "node:test";

import { io } from "socket.io-client";

import { startConsumer } from "./support/consumer.js";
import { withoutLong } from "./support/environment.js";
import { newTopic, publish } from "./support/kafka.js";
import { claims, token } from "./support/tokens.js";
import { folderOf, newCertificate, openEventsOver, openSession } from "./support/tls.js";
import { pause, until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

/** Of each transport; half of them with tokens that expire. */
const STREAMS = 50;
/** Over one connection of HTTP/2. */
const SHARED = 10;
/** How long the short tokens are valid, in seconds: longer than their streams take to open, and a certificate to be replaced. */
const SHORT = 20;

const bearer = (value) => ({ authorization: `Bearer ${value}` });

/** Opens a stream of each transport at `after`, or now. Its `data` are the texts that have come, and `bye` is how it ended. */
const OPEN = {
  async "server-sent events"(t, server, value, after) {
    const stream = await openEventsOver(t, await server.session(), `/events${after ? `?after=${after}` : ""}`, bearer(value));
    return { data: () => stream.texts(), bye: () => stream.named("bye")[0] };
  },
  async WebSocket(t, server, value, after) {
    const address = `wss://localhost:${server.port}/ws${after ? `?after=${after}` : ""}`;
    const socket = openSocket(t, address, { ca: server.ca, headers: bearer(value) });
    await socket.takes("start");
    return { data: () => socket.got("message").map(({ data }) => data), bye: () => socket.got("bye")[0] };
  },
  "Socket.IO, websocket": (...args) => openSocketIo("websocket", ...args),
  "Socket.IO, polling": (...args) => openSocketIo("polling", ...args),
};

async function openSocketIo(transport, t, server, value, after) {
  const auth = { token: value, ...(after && { after }) };
  const socket = io(`https://localhost:${server.port}`, { transports: [transport], ca: server.ca, forceNew: true, reconnection: false, auth });
  t.after(() => socket.close());
  const [data, byes] = [[], []];
  socket.on("message", (message) => data.push(message.data));
  socket.on("bye", (bye) => byes.push(bye));
  await once(socket, "start");
  return { data: () => data, bye: () => byes[0] };
}

/** Connections of HTTP/2 for a few streams each. */
function sessions(t, port, ca) {
  let [opened, current] = [0, undefined];
  return () => {
    if (opened++ % SHARED === 0) current = openSession(t, `https://localhost:${port}`, ca);
    return current;
  };
}

test(`${4 * STREAMS} streams go on while the key, the certificate and the tokens are replaced`, { skip: withoutLong("kafka", "openssl") }, async (t) => {
  const folder = folderOf(t);
  const [old, next] = [0, 1].map(() => ({ EdDSA: generateKeyPairSync("ed25519") }));
  const keys = path.join(folder, "keys");
  const trust = (...pairs) => writeFileSync(keys, pairs.map(({ EdDSA }) => EdDSA.publicKey.export({ type: "spki", format: "pem" })).join(""));
  trust(old);
  const [certificate, renewed] = [newCertificate(folder), newCertificate(folderOf(t))];
  const topic = await newTopic();
  const consumer = await startConsumer(t, topic, [...certificate.options, "--jwt-keys", keys]);
  const { port } = consumer;
  // Clients of polling connect again and again.
  const ca = [certificate.ca, renewed.ca];
  const server = { port, ca, session: sessions(t, port, ca) };
  const newToken = (pair, seconds) => token(claims({ read: [`topic/${topic}`], exp: Math.floor(Date.now() / 1000) + seconds }), "EdDSA", pair);

  const readers = [];
  const openAll = async (expiring, value) => {
    for (const [transport, open] of Object.entries(OPEN)) {
      const opening = Array.from({ length: STREAMS / 2 }, async () => {
        readers.push({ transport, open, expiring, parts: [await open(t, server, value)] });
      });
      await Promise.all(opening);
    }
  };
  await openAll(false, newToken(old, 3600));
  const expires = Date.now() + 1000 * SHORT;
  await openAll(true, newToken(old, SHORT));

  const sent = [];
  let stopped = false;
  t.after(() => (stopped = true));
  const publishing = (async () => {
    while (!stopped) {
      sent.push(`record ${sent.length}`);
      await publish(topic, [sent.at(-1)]);
      await pause(100);
    }
  })();

  trust(old, next);
  const shown = () =>
    new Promise((resolve) => {
      const asked = https.get(`https://localhost:${port}/`, { ca: renewed.ca, agent: false }, (response) => (response.resume(), resolve(true)));
      asked.on("error", () => resolve(false));
    });
  for (const file of ["cert", "key"]) copyFileSync(renewed[file], certificate[file]);
  await until("the next certificate is shown", shown);
  const accepted = async () => {
    const options = { ca, agent: false, headers: bearer(newToken(next, 60)) };
    const [response] = await once(https.get(`https://localhost:${port}/messages`, options), "response");
    response.resume();
    return response.statusCode === 200;
  };
  await until("the next key is known", accepted);
  assert.ok(Date.now() < expires, "no token has expired yet");
  server.session = sessions(t, port, ca);

  // Each that ends continues from its cursor, over the new certificate, with a token of the new key.
  const expiring = readers.filter(({ expiring }) => expiring);
  await Promise.all(
    expiring.map(async (reader) => {
      const [first] = reader.parts;
      const { reason, cursor } = await until(`the end of a stream over ${reader.transport}`, first.bye, 1000 * SHORT + 10_000);
      assert.ok(Date.now() >= expires - 1000, `not before its time, over ${reader.transport}`);
      assert.equal(reason, "expired", reader.transport);
      reader.parts.push(await reader.open(t, server, newToken(next, 3600), cursor));
    }),
  );
  trust(next);
  await until("the old key is unknown", async () => {
    const [response] = await once(https.get(`https://localhost:${port}/messages`, { ca, agent: false, headers: bearer(newToken(old, 60)) }), "response");
    response.resume();
    return response.statusCode === 401;
  });
  await pause(1000);
  stopped = true;
  await publishing;
  const texts = ({ parts }) => parts.flatMap(({ data }) => data());
  for (const reader of readers) {
    await until(() => `${sent.length} texts over ${reader.transport}; there are ${texts(reader).length}`, () => texts(reader).length >= sent.length);
    assert.deepEqual(texts(reader), sent, reader.transport);
    assert.equal(reader.parts.at(-1).bye(), undefined, reader.transport);
  }
});
