// Who may do what: every endpoint of every service, by every kind of token, from one table.

import assert from "node:assert/strict";
import { once } from "node:events";
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";

import { io } from "socket.io-client";
import { WebSocket } from "ws";

import { startConsumer } from "./support/consumer.js";
import { sqlite } from "./support/databases.js";
import { kafkaAddress, without } from "./support/environment.js";
import { openEvents, request } from "./support/http.js";
import { newTopic, publish } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { ALGORITHMS, accessOptions, claims, publicKeySet, token, wrong } from "./support/tokens.js";
import { pause, until } from "./support/wait.js";

const ROOM = "my-video";
const SESSION = "my-session";
let sockets = 0;

const bearer = (token) => (token === undefined ? {} : { authorization: `Bearer ${token}` });

/** A folder that is there until the test has ended. */
function folderOf(t) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "herald-access-"));
  t.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** A consumer with rooms, a projector and a gateway, with these options. They end with the test. */
async function startAll(t, options) {
  const [topic, events, likes, foods] = [await newTopic(), await newTopic(), await newTopic(), await newTopic()];
  const [partitioned, one, five, ten] = [await newTopic(), await newTopic(), await newTopic(), await newTopic()];
  const [rooms, gatewayPort] = [await freePort(), await freePort()];
  const results = [["1", one], ["5", five], ["10", ten]].flatMap(([of, name]) => [`--likes-${of}-min-aggregation-topic-name`, name]);
  const consumer = await startConsumer(t, topic, ["--rooms", "--rooms-listen", `127.0.0.1:${rooms}`, ...results, ...options]);
  const database = await sqlite();
  const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--events-topic", events];
  const counted = ["--projections", "sessions,counts", "--counts-topic", foods];
  const projector = new Service("projector", [...kafka, ...counted, "--group-prefix", topic, ...database.written], await freePort());
  const windows = ["--windows", `1m=${one},5m=${five},10m=${ten}`, "--likes-topic", likes, "--partitioned-likes-topic", partitioned];
  const listen = ["--listen", `127.0.0.1:${gatewayPort}`, "--publish-topics", topic];
  const gateway = new Service("gateway", [...kafka, ...listen, ...windows, ...database.read, ...options], await freePort());
  t.after(async () => {
    await Promise.all([gateway.kill(), projector.kill()]);
    await database.remove();
  });
  await Promise.all([gateway.start(), projector.start()]);
  return { topic, consumer, gateway, url: `http://127.0.0.1:${gatewayPort}`, rooms: `http://127.0.0.1:${rooms}` };
}

/** The outcome of a WebSocket: the status of its handshake, or the reason with which it is ended. */
function webSocket(url, token) {
  const socket = new WebSocket(url, { headers: bearer(token) });
  return new Promise((resolve, reject) => {
    socket.on("unexpected-response", (_, { statusCode }) => resolve(statusCode));
    socket.on("error", reject);
    socket.on("message", (data) => {
      const { type, reason, detail } = JSON.parse(data);
      resolve(type === "bye" ? { unauthenticated: 401, forbidden: 403 }[reason] ?? detail : "allowed");
      socket.close();
    });
    // The gateway says nothing unless asked.
    socket.on("open", () => url.includes("/websocket") && (resolve("allowed"), socket.close()));
  });
}

/** The outcome of a Socket.IO connection; of a room's registration, if there is one. */
function socketIo(url, options, room) {
  const socket = io(url, { forceNew: true, reconnection: false, ...options });
  const statusOf = (sentence) => (/does not allow/.test(sentence) ? 403 : 401);
  return new Promise((resolve) => {
    socket.on("connect_error", ({ message }) => resolve(statusOf(message)));
    socket.on("error", ({ error, reason, message }) => resolve(statusOf(`${error} ${reason} ${message}`)));
    socket.on("connect", () => (room ? socket.emit("register_room", { rooms: [room] }) : resolve("allowed")));
    if (room) {
      socket.on("connect", () => setTimeout(() => resolve("allowed"), 200));
    }
  }).finally(() => socket.close());
}

/** Every endpoint: the permission that it needs, and how to ask. */
const endpoints = {
  "GET /events": ["read", ({ consumer }, token) => get(`${consumer.url}/events`, token)],
  "GET /messages": ["read", ({ consumer }, token) => get(`${consumer.url}/messages`, token)],
  "GET /messages?topic=": ["read", ({ consumer, topic }, token) => get(`${consumer.url}/messages?topic=${topic}`, token)],
  "/ws": ["read", ({ consumer }, token) => webSocket(consumer.ws, token)],
  "Socket.IO, websocket": ["read", ({ consumer }, token) => socketIo(consumer.url, { transports: ["websocket"], auth: { token } })],
  "Socket.IO, polling": ["read", ({ consumer }, token) => socketIo(consumer.url, { transports: ["polling"], auth: { token } })],
  "Socket.IO, with a header": ["read", ({ consumer }, token) => socketIo(consumer.url, { transports: ["websocket"], extraHeaders: bearer(token) })],
  "rooms": ["read", ({ rooms }, token) => socketIo(rooms, { transports: ["websocket"], auth: { token } }, ROOM)],
  // A session may open ten connections a second.
  "/websocket": ["write", ({ url }, token) => webSocket(`${url.replace("http", "ws")}/websocket?session_id=${SESSION}-${sockets++}`, token)],
  "GET /data": ["read", ({ url }, token) => get(`${url}/data?session_id=${SESSION}`, token)],
  "GET /aggregated": ["read", ({ url }, token) => get(`${url}/aggregated`, token)],
  "POST /aggregated": ["read", ({ url }, token) => get(`${url}/aggregated`, token, "POST")],
  "GET /aggregated/stream": ["read", ({ url }, token) => get(`${url}/aggregated/stream`, token)],
  "POST likes": ["write", ({ url }, token) => get(`${url}/dev/videos/${ROOM}/likes`, token, "POST")],
  "GET /windows/stream": ["read", ({ url }, token) => get(`${url}/windows/stream?video=${ROOM}`, token)],
  "GET /windows/…/messages": ["read", ({ url }, token) => get(`${url}/windows/1min/0/${ROOM}/messages`, token)],
  // A ticket says who asks, not what for.
  "POST /tickets, consumer": ["any", ({ consumer }, token) => get(`${consumer.url}/tickets`, token, "POST")],
  "POST /tickets, gateway": ["any", ({ url }, token) => get(`${url}/tickets`, token, "POST")],
  "POST /topics/…/messages": ["write", ({ url, topic }, token) => get(`${url}/topics/${topic}/messages`, token, "POST")],
};

async function get(url, token, method = "GET") {
  const response = await fetch(url, { method, headers: bearer(token), body: method === "POST" ? "{}" : undefined });
  const { status } = response;
  if (status === 401 || status === 403) {
    assert.equal(response.headers.get("www-authenticate"), status === 401 ? "Bearer" : null);
    assert.equal(response.headers.get("cache-control"), "no-store");
    assert.match((await response.json()).error, /token|ticket/);
    return status;
  }
  await response.body?.cancel();
  return status < 500 ? "allowed" : status;
}

describe("every endpoint, by every token", { skip: without("kafka") }, () => {
  let all;
  const ends = [];
  before(async () => {
    const t = { after: (end) => ends.push(end) };
    all = await startAll(t, [...accessOptions(folderOf(t)), "--jwt-issuer", "me"]);
  });
  after(async () => {
    for (const end of ends.reverse()) await end();
  });

  const named = (of) => [`topic/${of}*`, `room/${of}*`, `session/${of}*`];
  const own = () => [`topic/${all.topic}`, `room/${ROOM}`, `session/${SESSION}*`, "counts"];
  const iss = "me";
  const principals = () => ({
    ...Object.fromEntries(Object.entries(wrong({ iss, read: ["*"], write: ["*"] })).map(([name, token]) => [name, [token, { read: 401, write: 401 }]])),
    "one who may do nothing": [token(claims({ iss })), { read: 403, write: 403 }],
    "one of other names": [token(claims({ iss, read: named("other"), write: named("other") })), { read: 403, write: 403 }],
    "one of everything": [token(claims({ iss, read: ["*"], write: ["*"], aud: ["another", "herald"] })), { read: "allowed", write: "allowed" }],
    ...Object.fromEntries(
      ALGORITHMS.flatMap((algorithm) => [
        [`a reader, ${algorithm}`, [token(claims({ iss, read: own() }), algorithm), { read: "allowed", write: 403 }]],
        [`a writer, ${algorithm}`, [token(claims({ iss, write: own() }), algorithm), { read: 403, write: "allowed" }]],
      ]),
    ),
  });

  for (const [endpoint, [action, ask]] of Object.entries(endpoints)) {
    test(endpoint, async () => {
      for (const [name, [token, expected]] of Object.entries(principals())) {
        const any = expected.read === 401 ? 401 : "allowed";
        assert.equal(await ask(all, token), { any, ...expected }[action], name);
      }
    });
  }

  test("the page and the description are for everyone, and the configuration for those with a token", async () => {
    for (const file of ["/", "/client.js", "/openapi.json"]) {
      assert.equal((await request(`${all.consumer.url}${file}`)).status, 200, file);
    }
    assert.equal((await request(`${all.consumer.url}/config`)).status, 401);
    const topics = async (read) => (await request(`${all.consumer.url}/config`, { headers: bearer(token(claims({ iss, read }))) })).json.topics;
    assert.deepEqual(await topics([]), []);
    const { json } = await request(`${all.consumer.url}/messages`, { headers: bearer(token(claims({ iss, read: ["topic/other"] }))) });
    assert.doesNotMatch(json.error, new RegExp(all.topic));
    assert.ok((await topics(["topic/*"])).includes(all.topic));
  });

  test("whether a topic exists is not said to those who may not read it", async () => {
    const ask = async (topic) => {
      const { status, json } = await request(`${all.consumer.url}/events?topic=${topic}`, { headers: bearer(token(claims({ iss, read: ["topic/other"] }))) });
      return [status, json.error.replace(topic, "")];
    };
    assert.deepEqual(await ask(all.topic), await ask("unknown"));
    const { json } = await request(`${all.consumer.url}/events?topic=other`, { headers: bearer(token(claims({ iss, read: ["topic/other"] }))) });
    assert.equal(json.error, 'topic "other" is not served here; these are: ');
  });

  test("only the videos that a client may read are listed", async () => {
    const ids = async (read) => {
      const { json } = await request(`${all.url}/videos/metadata`, { headers: bearer(token(claims({ iss, read }))) });
      return json.length;
    };
    assert.deepEqual([await ids(["room/93f98662-*"]), await ids(["room/*"]), await ids([])], [1, 2, 0]);
    assert.equal((await request(`${all.url}/videos/metadata`)).status, 401);
  });

  test("a cookie counts for pages of the server's own origin", async () => {
    const cookie = `other=1; __Host-herald=${token(claims({ iss, read: ["topic/*"] }))}`;
    const ask = (headers) => request(`${all.consumer.url}/messages`, { headers: { cookie, ...headers } });
    assert.equal((await ask({})).status, 200);
    assert.equal((await ask({ origin: "https://evil.example" })).status, 403);
    const { port } = all.consumer;
    // A page without TLS may have been written by anybody on the way, but not on this machine.
    assert.equal((await ask({ origin: `http://127.0.0.1:${port}` })).status, 200);
    assert.equal((await ask({ origin: `http://herald.example:${port}`, host: `herald.example:${port}` })).status, 403);
    assert.equal((await ask({ cookie: `a=\u00e9; ${cookie}` })).status, 200);
    // A header counts first.
    assert.equal((await ask(bearer("abc"))).status, 401);
    assert.equal((await ask({ authorization: "Basic abc" })).status, 401);
  });

  const everything = (more) => token(claims({ iss, read: ["*"], write: ["*"], ...more }));
  const tickets = [];
  const ticketOf = async (url, token) => {
    const response = await fetch(`${url}/tickets`, { method: "POST", headers: bearer(token) });
    assert.equal(response.status, 201);
    assert.equal(response.headers.get("cache-control"), "no-store");
    const { ticket, expires_in } = await response.json();
    assert.equal(expires_in, 30);
    tickets.push(ticket);
    return ticket;
  };

  test("a ticket opens one stream, and only at the service that issued it", async (t) => {
    const { consumer, url } = all;
    const gateway = url.replace("http", "ws");
    for (const [of, open] of [
      [consumer.url, (ticket) => get(`${consumer.url}/events?ticket=${ticket}`)],
      [consumer.url, (ticket) => get(`${consumer.url}/messages?limit=1&ticket=${ticket}`)],
      [consumer.url, (ticket) => webSocket(`${consumer.ws}?ticket=${ticket}&last=0`)],
      [url, (ticket) => get(`${url}/aggregated/stream?ticket=${ticket}`)],
      [url, (ticket) => webSocket(`${gateway}/websocket?ticket=${ticket}&session_id=${SESSION}-${sockets++}`)],
    ]) {
      const ticket = await ticketOf(of, everything());
      assert.equal(await open(ticket), "allowed");
      assert.equal(await open(ticket), 401, "used twice");
      assert.equal(await open(await ticketOf(of === url ? consumer.url : url, everything())), 401, "of another service");
      assert.equal(await open("x".repeat(32)), 401);
    }
    const narrow = await ticketOf(consumer.url, token(claims({ iss, read: ["topic/other"] })));
    assert.equal(await get(`${consumer.url}/events?ticket=${narrow}`), 403);
    const exp = Math.floor(Date.now() / 1000) + 2;
    const old = await ticketOf(consumer.url, everything({ exp }));
    await pause(2100);
    const { status, json } = await request(`${consumer.url}/events?ticket=${old}`);
    assert.deepEqual([status, json.error], [401, "the token has expired"]);
    assert.equal((await request(`${consumer.url}/tickets`, { headers: bearer(everything()) })).status, 405);
    // A stream that was opened with a ticket ends with the token.
    const soon = await ticketOf(consumer.url, everything({ exp: Math.floor(Date.now() / 1000) + 2 }));
    const stream = await openEvents(t, `${consumer.url}/events?ticket=${soon}`);
    await until("a bye", () => stream.named("bye")[0]?.reason === "expired");
  });

  test("the audit log names who was refused what, and each stream's start and end", async (t) => {
    const { consumer } = all;
    const lines = (message, principal) => {
      const all = consumer.log.split("\n").filter((line) => line.includes('"audit"')).map((line) => JSON.parse(line));
      return all.filter((line) => line.message === message && line.principal === principal);
    };
    const ask = (token, path = "events", headers) => request(`${consumer.url}/${path}`, { headers: { ...bearer(token), ...headers } });
    await ask(everything({ sub: "ada", read: ["topic/other"] }), "messages", { "x-request-id": "mine" });
    const [refused] = await until("a line", () => lines("refused", "ada").length === 1 && lines("refused", "ada"));
    assert.deepEqual([refused.reason, refused.request, refused.address, refused.request_id], ["forbidden", "read topic", "127.0.0.1", "mine"]);
    await ask(everything({ sub: undefined, jti: "number 7", read: [] }), `messages?topic=${all.topic}`);
    assert.equal((await until("a line", () => lines("refused", "number 7")[0])).request, `read topic/${all.topic}`);
    const stream = await openEvents(t, `${consumer.url}/events`, { headers: bearer(everything({ sub: "grace" })) });
    const started = await until("its start", () => lines("stream started", "grace")[0]);
    assert.deepEqual([started.transport, started.request, started.address], ["sse", `read topic/${all.topic}`, "127.0.0.1"]);
    stream.close();
    const ended = await until("its end", () => lines("stream ended", "grace")[0]);
    assert.deepEqual([ended.reason, ended.request_id, typeof ended.seconds], ["client", started.request_id, "number"]);
    const reasons = new Set(lines("refused").map(({ reason }) => reason));
    for (const reason of ["no-token", "unknown-key", "not-a-token", "token-expired", "token-audience", "ticket", "origin"]) {
      assert.ok(reasons.has(reason), reason);
    }
    const metrics = (await request(`${consumer.admin}/metrics`)).text;
    assert.match(metrics, /herald_connections_refused_total\{reason="forbidden"\} [1-9]/);
  });

  test("no token and no ticket is in a log", () => {
    for (const { log, name } of [all.consumer, all.gateway]) {
      assert.doesNotMatch(log, /eyJ/, name);
      for (const ticket of tickets) assert.ok(!log.includes(ticket), name);
    }
  });
});

/** The ways to hold a stream open: each returns the reason with which the server ends it. */
const streams = {
  "server-sent events": async (t, { consumer }, token) => {
    const stream = await openEvents(t, `${consumer.url}/events`, { headers: bearer(token) });
    return until("a bye", () => stream.named("bye")[0]?.reason);
  },
  "a WebSocket": async (t, { consumer }, token) => {
    const socket = new WebSocket(consumer.ws, { headers: bearer(token) });
    const [code] = await once(socket, "close");
    assert.equal(code, 4401);
    return "expired";
  },
  "Socket.IO": async (t, { consumer }, token) => {
    const socket = io(consumer.url, { forceNew: true, reconnection: false, auth: { token } });
    t.after(() => socket.close());
    const [{ reason }] = await new Promise((resolve) => socket.on("bye", (...bye) => resolve(bye)));
    return reason;
  },
  "rooms": async (t, { rooms }, token) => {
    const socket = io(rooms, { forceNew: true, reconnection: false, auth: { token } });
    t.after(() => socket.close());
    const [{ reason }] = await new Promise((resolve) => socket.on("bye", (...bye) => resolve(bye)));
    return reason;
  },
  "counts": async (t, { url }, token) => {
    const stream = await openEvents(t, `${url}/aggregated/stream`, { headers: bearer(token) }).catch(() => undefined);
    await until("the end", () => stream.ended);
    return "expired";
  },
  "frames": async (t, { url }, token) => {
    const socket = new WebSocket(`${url.replace("http", "ws")}/websocket?session_id=${SESSION}`, { headers: bearer(token) });
    const [code, reason] = await once(socket, "close");
    assert.deepEqual([code, `${reason}`], [4401, "the token has expired"]);
    return "expired";
  },
};

describe("streams end with their tokens", { skip: without("kafka") }, () => {
  test("within a second after a token has expired, and at once when it is revoked", async (t) => {
    const folder = folderOf(t);
    const all = await startAll(t, accessOptions(folder, publicKeySet));
    const rights = { read: ["*"], write: ["*"] };
    const exp = Math.floor(Date.now() / 1000) + 5;
    await Promise.all(
      Object.entries(streams).map(async ([name, open]) => {
        assert.equal(await open(t, all, token(claims({ ...rights, exp }))), "expired", name);
        const late = Date.now() - exp * 1000;
        // A busy machine may be late.
        assert.ok(late >= -50 && late < 3000, `${name}: ended ${late} ms after its token`);
      }),
    );
    const revoked = Object.entries(streams).map(async ([name, open]) => {
      assert.equal(await open(t, all, token(claims({ ...rights, jti: "soon" }))), "expired", name);
    });
    await pause(1000);
    appendFileSync(`${folder}/revoked`, "soon\n");
    await Promise.all(revoked);
  });

  test("a key that is replaced while streams run is used at once, and an unreadable file changes nothing", async (t) => {
    const folder = folderOf(t);
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic, accessOptions(folder, publicKeySet));
    const sent = token(claims({ read: ["*"] }), "ES256");
    const ask = async () => (await request(`${consumer.url}/messages`, { headers: bearer(sent) })).status;
    const stream = await openEvents(t, `${consumer.url}/events`, { headers: bearer(sent) });
    const set = JSON.parse(publicKeySet);
    const without = { keys: set.keys.filter(({ alg }) => alg !== "ES256") };
    writeFileSync(`${folder}/keys`, JSON.stringify(without));
    await until("the old key to be refused", async () => (await ask()) === 401);
    writeFileSync(`${folder}/keys`, "nonsense");
    await until("the mistake to be logged", () => /what it contained before stays valid/.test(consumer.log));
    assert.equal(await ask(), 401);
    writeFileSync(`${folder}/keys`, publicKeySet);
    await until("the key to be accepted again", async () => (await ask()) === 200);
    await publish(topic, [{ value: "after" }]);
    await stream.takes(1);
  });

  test("an owner of tokens has as many streams as are allowed, over all transports", async (t) => {
    const topic = await newTopic();
    const consumer = await startConsumer(t, topic, [...accessOptions(folderOf(t)), "--max-streams-per-principal", "2"]);
    const of = (sub) => token(claims({ read: ["*"], sub }));
    const open = () => openEvents(t, `${consumer.url}/events`, { headers: bearer(of("ada")) });
    const [first] = await Promise.all([open(), open()]);
    const third = await open();
    await until("a bye", () => third.named("bye")[0]?.reason === "overload");
    assert.match(third.named("bye")[0].detail, /2 streams open, which is the limit/);
    const socket = new WebSocket(consumer.ws, { headers: bearer(of("ada")) });
    assert.equal((await once(socket, "close"))[0], 1013);
    const client = io(consumer.url, { forceNew: true, reconnection: false, auth: { token: of("ada") } });
    t.after(() => client.close());
    const [{ reason }] = await new Promise((resolve) => client.on("bye", (...bye) => resolve(bye)));
    assert.equal(reason, "overload");
    assert.equal(await webSocket(consumer.ws, of("bob")), "allowed");
    first.close();
    await until("room", async () => (await webSocket(consumer.ws, of("ada"))) === "allowed");
  });

  test("what is wrong with the options is said in one sentence", async (t) => {
    const folder = folderOf(t);
    const files = { empty: "", text: "text", p384: '{"keys":[{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}]}', alg: '{"keys":[{"kty":"oct","k":"AAAA","alg":"HS512"}]}', short: '{"keys":[{"kty":"oct","k":""}]}' };
    for (const [name, content] of Object.entries(files)) writeFileSync(`${folder}/${name}`, content);
    writeFileSync(`${folder}/keys`, publicKeySet);
    for (const [options, sentence] of [
      [["--jwt-keys", `${folder}/none`], /cannot read .*none: No such file/],
      [["--jwt-keys", `${folder}/empty`], /cannot use .*empty: it contains no key, neither in PEM nor as a JWKS/],
      [["--jwt-keys", `${folder}/text`], /it contains no key/],
      [["--jwt-keys", `${folder}/p384`], /is of a kind that is not supported; use RSA, P-256, Ed25519 or a secret/],
      [["--jwt-keys", `${folder}/alg`], /is for HS512; it must be HS256/],
      [["--jwt-keys", `${folder}/short`], /cannot be used: a secret has at least 32 bytes/],
      [["--jwt-cookie", "__Host-a"], /--jwt-cookie has no effect without --jwt-keys/],
      [["--jwt-keys", `${folder}/keys`, "--jwt-cookie", "a"], /must begin with __Host-/],
      [["--jwt-keys", `${folder}/keys`, "--jwt-cookie", "__Host-a", "--allowed-origins", "*"], /--allowed-origins must not be \*/],
    ]) {
      const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--listen", `127.0.0.1:${await freePort()}`];
      const consumer = new Service("consumer", [...kafka, "--kafka-topic", "any", ...options], await freePort());
      consumer.spawn();
      const [code] = await consumer.exited;
      assert.notEqual(code, 0, options.join(" "));
      assert.match(consumer.log, sentence);
      assert.equal(consumer.log.split("\n").filter((line) => /error/i.test(line)).length, 1, consumer.log);
    }
  });
});
