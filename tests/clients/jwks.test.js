// Keys of tokens from the address of an issuer, which is down, comes back, and replaces its keys.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import os from "node:os";
import path from "node:path";
import { describe, test } from "node:test";

import { io } from "socket.io-client";

import { Consumer, startConsumer } from "./support/consumer.js";
import { kafkaAddress, without } from "./support/environment.js";
import { openEvents, request } from "./support/http.js";
import { newTopic, publish } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { claims, token } from "./support/tokens.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

/** A key pair with a name, as `token` takes it. */
const newPair = (kid) => ({ kid, EdDSA: generateKeyPairSync("ed25519") });

const published = ({ kid, EdDSA }) => ({ ...EdDSA.publicKey.export({ format: "jwk" }), kid, alg: "EdDSA", use: "sig" });

/** Issuers publish keys for others too. */
const unsupported = [{ kty: "EC", crv: "P-521", x: "AA", y: "AA" }, { kty: "AKP", alg: "ML-DSA-65", pub: "AA" }, { kty: "oct", k: "AA" }];

/** An issuer on this port with the keys of these pairs. It ends with the test. */
async function startIssuer(t, port, pairs, tls) {
  const issuer = { pairs, requests: 0 };
  const answer = (_, response) => {
    issuer.requests += 1;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ keys: [...unsupported, ...issuer.pairs.map(published)] }));
  };
  const server = tls ? https.createServer(tls, answer) : http.createServer(answer);
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  issuer.stop = () => (server.closeAllConnections(), server.close());
  t.after(issuer.stop);
  return issuer;
}

/** Headers with a token of this key that may read everything. */
function bearer(pair, header = {}) {
  return { authorization: `Bearer ${token(claims({ read: ["*"] }), "EdDSA", pair, { kid: pair.kid, ...header })}` };
}

/** The answer to a request for messages with these headers. */
const ask = ({ url }, headers) => request(`${url}/messages`, { headers });

const isAccepted = (consumer, headers) => async () => (await ask(consumer, headers)).status === 200;

const addressOf = (port, scheme = "http") => `${scheme}://localhost:${port}/.well-known/jwks.json`;

describe("keys from an address", { concurrency: true, skip: without("kafka") }, () => {
  test("are replaced under live streams, and the first token of a new one is enough to fetch it", async (t) => {
    const [old, next] = [newPair("old"), newPair("next")];
    const port = await freePort();
    const [issuer, topic] = [await startIssuer(t, port, [old]), await newTopic()];
    const consumer = await startConsumer(t, topic, ["--jwt-keys", addressOf(port)]);
    const events = await openEvents(t, `${consumer.url}/events`, { headers: bearer(old) });
    const socket = openSocket(t, consumer.ws, { headers: bearer(old) });
    await publish(topic, ["before"]);
    await Promise.all([events.takes(1), socket.takes("message")]);
    issuer.pairs = [next];
    assert.equal((await ask(consumer, bearer(old))).status, 200, "nothing has named the new key");
    const refused = await Promise.all(Array.from({ length: 20 }, () => ask(consumer, bearer(next))));
    for (const { status, json } of refused.filter(({ status }) => status !== 200)) {
      assert.equal(status, 401);
      assert.match(json.error, /names a key that is not known here; the keys are being fetched again, so try again in a second/);
    }
    assert.ok(refused.some(({ status }) => status === 401));
    await until("the new key to be accepted", isAccepted(consumer, bearer(next)), 2_000);
    assert.equal(issuer.requests, 2);
    assert.equal((await ask(consumer, bearer(old))).status, 401);
    const later = await openEvents(t, `${consumer.url}/events`, { headers: bearer(next) });
    await publish(topic, ["after"]);
    await Promise.all([events.takes(2), socket.takes("message", 2), later.takes(1)]);
    assert.deepEqual(events.messages().map(({ data }) => data), ["before", "after"]);
    assert.match(consumer.log, /fetched the keys of tokens.*next/);
  });

  test("let nobody in before they are there, and stay when the issuer is gone", async (t) => {
    const pair = newPair("a");
    const [port, gatewayPort] = [await freePort(), await freePort()];
    const options = ["--jwt-keys", addressOf(port)];
    const consumer = new Consumer([await newTopic()], options, await freePort(), await freePort());
    const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--events-topic", await newTopic(), "--listen", `127.0.0.1:${gatewayPort}`];
    const gateway = new Service("gateway", [...kafka, ...options], await freePort());
    const document = `http://127.0.0.1:${gatewayPort}/data?session_id=a`;
    t.after(() => Promise.all([consumer.kill(), gateway.kill()]));
    consumer.spawn();
    gateway.spawn();
    for (const { admin } of [consumer, gateway]) {
      const reason = /keys of tokens: cannot fetch them from http:\/\/localhost.*Connection refused/;
      await until("the reason in /readyz", async () => reason.test((await request(`${admin}/readyz`).catch(() => ({ text: "" }))).text));
      assert.equal((await request(`${admin}/readyz`)).status, 503);
      assert.equal((await request(`${admin}/livez`)).status, 200);
    }
    const headers = bearer(pair);
    for (const url of [`${consumer.url}/messages`, `${consumer.url}/events`, document]) {
      const answer = await request(url, { headers });
      assert.equal(answer.status, 503, url);
      assert.equal(answer.headers["retry-after"], "2");
      assert.match(answer.json.error, /the keys of tokens have not been fetched yet; try again in a moment/);
    }
    assert.equal((await request(`${consumer.url}/`)).status, 200, "the page is public");
    const socket = openSocket(t, consumer.ws, { headers });
    await socket.ends();
    assert.equal(socket.closed.code, 1013);
    assert.deepEqual(socket.got("bye").map(({ reason }) => reason), ["overload"]);
    const refused = io(consumer.url, { forceNew: true, reconnection: false, extraHeaders: headers });
    t.after(() => refused.close());
    const [error] = await new Promise((resolve) => ["connect_error", "connect"].forEach((name) => refused.on(name, (...args) => resolve(args))));
    assert.match(error.message, /have not been fetched yet/);
    const lines = consumer.log.split("\n").filter((line) => /no token is accepted until/.test(line));
    assert.equal(lines.length, 1, "a problem is logged once");

    const issuer = await startIssuer(t, port, [pair]);
    await Promise.all([consumer.ready(), gateway.ready()]);
    assert.equal((await ask(consumer, headers)).status, 200);
    assert.notEqual((await request(document, { headers })).status, 503);
    issuer.stop();
    assert.equal((await ask(consumer, bearer(newPair("unknown")))).status, 401);
    const note = /^ok\nkeys of tokens: cannot fetch them/;
    await until("the note in /readyz", async () => note.test((await request(`${consumer.admin}/readyz`)).text));
    assert.equal(await consumer.readiness(), 200);
    assert.equal((await ask(consumer, headers)).status, 200);
    assert.match(consumer.log, /those that were fetched before stay valid/);
  });

  test("are never taken from the header of a token", async (t) => {
    const [pair, forged] = [newPair("a"), newPair("a")];
    const [port, otherPort] = [await freePort(), await freePort()];
    const issuer = await startIssuer(t, port, [pair]);
    const other = await startIssuer(t, otherPort, [forged]);
    const consumer = await startConsumer(t, await newTopic(), ["--jwt-keys", addressOf(port)]);
    for (const kid of ["a", "b", undefined]) {
      const header = { kid, jku: addressOf(otherPort), x5u: addressOf(otherPort), jwk: published(forged) };
      assert.equal((await ask(consumer, bearer(forged, header))).status, 401, kid);
    }
    await until("the fetch for the unknown name", () => issuer.requests === 2);
    assert.equal(other.requests, 0);
  });

  test("come over TLS from an issuer with a private CA", { skip: without("openssl") }, async (t) => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "herald-jwks-"));
    t.after(() => rmSync(folder, { recursive: true }));
    const openssl = (...args) => execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
    const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    openssl("req", "-x509", ...newKey, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=our CA", "-days", "2");
    openssl("req", ...newKey, "-keyout", "key", "-out", "request", "-subj", "/CN=issuer");
    writeFileSync(`${folder}/names`, "subjectAltName=DNS:localhost\n");
    const signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"];
    openssl("x509", "-req", "-in", "request", "-out", "certificate", ...signed);
    const [pair, port] = [newPair("a"), await freePort()];
    await startIssuer(t, port, [pair], { key: readFileSync(`${folder}/key`), cert: readFileSync(`${folder}/certificate`) });
    const options = ["--jwt-keys", addressOf(port, "https")];
    const consumer = await startConsumer(t, await newTopic(), [...options, "--jwt-keys-ca", `${folder}/ca.crt`]);
    assert.equal((await ask(consumer, bearer(pair))).status, 200);
    const distrustful = new Consumer([await newTopic()], options, await freePort(), await freePort());
    t.after(() => distrustful.kill());
    distrustful.spawn();
    await until("the certificate to be rejected", () => /invalid peer certificate: UnknownIssuer/.test(distrustful.log));
    assert.equal(await distrustful.readiness(), 503);
  });

  test("have their mistakes said in one sentence", async (t) => {
    for (const [options, sentence] of [
      [["--jwt-keys", "http://issuer.example/keys"], /http:\/\/ is for this machine \(localhost\) alone, since anybody in between could add a key; use https:\/\//],
      [["--jwt-keys", "https://a:b@issuer.example/keys"], /it contains a password, which would be logged; leave it out/],
      [["--jwt-keys", ""], /it is empty; name a file or an address, or leave the option out/],
      [["--jwt-keys", "keys", "--jwt-keys-ca", "ca"], /--jwt-keys-ca has no effect unless --jwt-keys is an https:\/\/ address/],
      [["--jwt-keys", "https://localhost/", "--jwt-keys-ca", "/none"], /cannot read \/none: No such file/],
    ]) {
      const consumer = new Consumer(["any"], options, await freePort(), await freePort());
      t.after(() => consumer.kill());
      consumer.spawn();
      const [code] = await consumer.exited;
      assert.notEqual(code, 0, options.join(" "));
      assert.match(consumer.log, sentence);
      assert.equal(consumer.log.split("\n").filter((line) => /error/i.test(line)).length, 1, consumer.log);
    }
  });
});
