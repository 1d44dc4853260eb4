// Which pages may read: pages of the consumer's own origin, and of the origins that are configured.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { startConsumer } from "./support/consumer.js";
import { without } from "./support/environment.js";
import { head, request } from "./support/http.js";
import { newTopic } from "./support/kafka.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

const FOREIGN = "https://evil.example";
const LISTED = "https://app.example";

const handshake = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==" };

/** Each endpoint with its response to a page that may read. */
const addresses = [
  ["/events", 200],
  ["/messages", 200],
  ["/config", 200],
  ["/", 200],
  ["/client.js", 200],
  ["/openapi.json", 200],
  ["/socket.io/?EIO=4&transport=polling", 200],
  ["/ws", 101, handshake],
  ["/socket.io/?EIO=4&transport=websocket", 101, handshake],
];

describe("origins", { skip: without("kafka"), concurrency: true }, () => {
  test("a page of another site is rejected on every transport", async (t) => {
    const consumer = await startConsumer(t, await newTopic());
    for (const [path, , headers] of addresses) {
      for (const Origin of [FOREIGN, "null", `http://127.0.0.1:${consumer.port + 1}`, `http://127.0.0.1.evil.example:${consumer.port}`]) {
        const answer = await request(`${consumer.url}${path}`, { headers: { ...headers, Origin } });
        assert.equal(answer.status, 403, `${path} for ${Origin}`);
        assert.match(answer.json.error, /may not read here/);
        assert.equal(answer.headers["access-control-allow-origin"], undefined);
      }
    }
    const socket = openSocket(t, consumer.ws, { origin: FOREIGN });
    await until("an answer to the handshake", () => socket.refused);
    assert.equal(socket.refused, 403);
    const post = await request(`${consumer.url}/socket.io/?EIO=4&transport=polling&sid=x`, { method: "POST", headers: { Origin: FOREIGN } });
    assert.equal(post.status, 403);
  });

  test("a page of the consumer's own origin, and a client that sends no origin, may read", async (t) => {
    const consumer = await startConsumer(t, await newTopic());
    for (const [path, status, headers] of addresses) {
      for (const origin of [{}, { Origin: consumer.url }]) {
        const answer = await head(`${consumer.url}${path}`, { headers: { ...headers, ...origin } });
        assert.equal(answer.status, status, path);
        assert.equal(answer.headers["access-control-allow-origin"], undefined);
      }
    }
  });

  test("a listed origin may read, is named in the answer, and others still may not", async (t) => {
    const consumer = await startConsumer(t, await newTopic(), ["--allowed-origins", `https://other.example,${LISTED}`]);
    for (const [path, status, headers] of addresses) {
      const listed = await head(`${consumer.url}${path}`, { headers: { ...headers, Origin: LISTED } });
      assert.equal(listed.status, status, path);
      assert.equal(listed.headers["access-control-allow-origin"], LISTED, path);
      assert.equal(listed.headers["access-control-allow-credentials"], undefined, path);
      assert.match(listed.headers.vary, /origin/i, path);
      const foreign = await head(`${consumer.url}${path}`, { headers: { ...headers, Origin: FOREIGN } });
      assert.equal(foreign.status, 403, path);
      assert.equal(foreign.headers["access-control-allow-origin"], undefined, path);
    }
  });

  test("everyone may be listed, and then nobody's credentials are taken", async (t) => {
    const consumer = await startConsumer(t, await newTopic(), ["--allowed-origins", "*"]);
    for (const [path, status, headers] of addresses) {
      const answer = await head(`${consumer.url}${path}`, { headers: { ...headers, Origin: FOREIGN, Cookie: "a=b" } });
      assert.equal(answer.status, status, path);
      assert.equal(answer.headers["access-control-allow-origin"], "*", path);
      assert.equal(answer.headers["access-control-allow-credentials"], undefined, path);
    }
  });

  test("a listed page may send Last-Event-ID, as its browser asks beforehand", async (t) => {
    const consumer = await startConsumer(t, await newTopic(), ["--allowed-origins", LISTED]);
    const preflight = (path, Origin, method, wanted) =>
      request(`${consumer.url}${path}`, { method: "OPTIONS", headers: { Origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted } });
    for (const [path, method, wanted] of [
      ["/events", "GET", "last-event-id"],
      ["/events", "GET", "authorization"],
      ["/messages", "GET", "authorization"],
      ["/socket.io/?EIO=4&transport=polling", "POST", "content-type"],
    ]) {
      const answer = await preflight(path, LISTED, method, wanted);
      assert.equal(answer.status, 204);
      assert.equal(answer.headers["access-control-allow-origin"], LISTED);
      assert.ok(answer.headers["access-control-allow-headers"].toLowerCase().split(/, */).includes(wanted));
      assert.ok(answer.headers["access-control-allow-methods"].split(/, */).includes(method));
      assert.equal(answer.headers["access-control-allow-credentials"], undefined);
      const foreign = await preflight(path, FOREIGN, method, wanted);
      assert.equal(foreign.status, 403);
      assert.equal(foreign.headers["access-control-allow-origin"], undefined);
    }
  });
});
