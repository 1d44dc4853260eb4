// Sessions: frames go in over a WebSocket, and their document comes out of GET /data. With npm's ws and python's websockets, as the
// clients of the original use them.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { WebSocket } from "ws";

import { ORIGINAL, address, ended, send } from "../page/session.js";
import { postgres, sqlite } from "./support/databases.js";
import { kafkaAddress, python, without } from "./support/environment.js";
import { request } from "./support/http.js";
import { startSessions } from "./support/sessions.js";
import { until } from "./support/wait.js";
import { openSocket, rejected } from "./support/websocket.js";

const SESSION_END = { received: [], code: 1000, reason: "the session has ended" };

const event = (timestamp, name, fields = {}) => ({ type: "EVENT", timestamp, name, ...fields });
const start = (timestamp) => ({ type: "SESSION_START", timestamp });
const end = (timestamp) => ({ type: "SESSION_END", timestamp });

const get = (url, id, parameters, headers) => request(address(url, "/data", id, parameters), { headers });

/** An open session whose frames are acknowledged. */
function openSession(t, url, id) {
  const session = openSocket(t, address(url, "/websocket", id, { ack: 1 }));
  const answered = (count) => until(`${count} answers in ${id}`, () => session.frames.length >= count || session.closed);
  session.opens = () => until("the session is open", () => session.socket.readyState === WebSocket.OPEN);
  /** Sends a frame and resolves with its answer. */
  session.exchange = async (frame) => {
    await session.opens();
    const count = session.frames.length;
    session.socket.send(Array.isArray(frame) ? JSON.stringify(frame) : frame);
    await answered(count + 1);
    return session.frames[count];
  };
  return session;
}

/** A frame as a line for session.py. */
function line(frame) {
  const value = Array.isArray(frame) ? JSON.stringify(frame) : Buffer.isBuffer(frame) ? { binary: frame.toString("base64") } : frame;
  return `${JSON.stringify(value)}\n`;
}

/** All events that python writes about one connection that sends these frames. */
async function inPython(url, frames) {
  const script = fileURLToPath(new URL("python/session.py", import.meta.url));
  const child = spawn(python, [script, url], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(child, "exit");
  child.stdin.on("error", () => {}); // it may end before it has read everything
  child.stdin.end(frames.map(line).join(""));
  let text = "";
  for await (const piece of child.stdout.setEncoding("utf8")) {
    text += piece;
  }
  assert.deepEqual(await exited, [0, null]);
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

const clients = {
  ws: { needs: [], send: (url, { id, frames }) => send(WebSocket, url, id, frames) },
  websockets: {
    needs: ["python"],
    async send(url, { id, frames }) {
      const events = await inPython(address(url, "/websocket", id), frames);
      const { closed: code, reason } = events.pop();
      return { received: events, code, reason };
    },
  },
};

for (const [name, newDatabase, needs] of [["SQLite", sqlite, ["kafka"]], ["PostgreSQL", postgres, ["kafka", "postgres"]]]) {
  describe(`sessions in ${name}`, { skip: without(...needs), concurrency: 3 }, () => {
    for (const [library, client] of Object.entries(clients)) {
      test(`the original's session, sent with ${library}, becomes the original's document`, { skip: without(...client.needs) }, async (t) => {
        const { url } = await startSessions(t, newDatabase);
        const missing = await get(url, ORIGINAL.id);
        assert.deepEqual([missing.status, missing.text], [404, `no data found for session_id ${ORIGINAL.id}`]);
        assert.match(missing.headers["content-type"], /^text\/plain/);

        assert.deepEqual(await client.send(url, ORIGINAL), SESSION_END);
        assert.deepEqual(await ended(url, ORIGINAL.id), ORIGINAL.document);
        const { status, headers, text } = await get(url, ORIGINAL.id);
        assert.deepEqual([status, headers["content-type"], text], [200, "application/json", JSON.stringify(ORIGINAL.document)]);

        const none = await request(`${url}/data`);
        assert.deepEqual([none.status, none.text], [400, "query is missing session_id"]);
        assert.match(none.headers["content-type"], /^text\/plain/);
      });
    }

    test("each frame is acknowledged with its cursor, after which its writer reads it at once", async (t) => {
      const { url } = await startSessions(t, newDatabase);
      const session = openSession(t, url, "own writes");
      const cursors = new Set();
      const children = [];
      for (let number = 0; number < 10; number += 1) {
        const sent = event(number, `event ${number}`);
        const ack = await session.exchange([sent]);
        assert.deepEqual(ack, { type: "ack", partition: ack.partition, offset: number, cursor: ack.cursor });
        cursors.add(ack.cursor);
        children.push(sent);
        const { status, text } = await get(url, "own writes", { after: ack.cursor, wait: 20_000 });
        assert.equal(status, 200, text);
        assert.deepEqual(JSON.parse(text), { session_id: "own writes", type: "SESSION", start: null, end: null, children });
      }
      assert.equal(cursors.size, 10);
      assert.equal(session.closed, undefined);
    });

    test("a client that has the document is answered with 304 until it changes", async (t) => {
      const { url } = await startSessions(t, newDatabase);
      const session = openSession(t, url, "tags");
      const first = await session.exchange([event(1, "one")]);
      const { status, headers } = await get(url, "tags", { after: first.cursor, wait: 20_000 });
      assert.equal(status, 200);
      const known = { "If-None-Match": headers.etag };
      for (const value of [headers.etag, `W/${headers.etag}`, `"other", ${headers.etag}`, "*"]) {
        const same = await get(url, "tags", {}, { "If-None-Match": value });
        assert.deepEqual([same.status, same.text, same.headers.etag], [304, "", headers.etag], value);
      }
      assert.equal((await get(url, "tags", {}, { "If-None-Match": '"other"' })).status, 200);

      const second = await session.exchange([event(2, "two")]);
      const changed = await get(url, "tags", { after: second.cursor, wait: 20_000 }, known);
      assert.deepEqual([changed.status, changed.json.children.length], [200, 2]);
      assert.notEqual(changed.headers.etag, headers.etag);
      assert.equal((await get(url, "tags", {}, { "If-None-Match": changed.headers.etag })).status, 304);
      assert.equal((await get(url, "unknown", {}, known)).status, 404);
    });

    test("events out of order, and sent twice, become the same document as in order and once", async (t) => {
      const { url } = await startSessions(t, newDatabase);
      // A frame that is sent again adds nothing, nor does an event with an id that is sent again in another frame.
      const [began, a, d, over] = [[start(1)], [event(2, "a")], [event(5, "d", { id: "d" })], [event(6, "e"), end(7)]];
      const bc = [event(3, "b", { extra: { deep: [1.5] } }), event(4, "c")];
      const frames = [began, a, bc, d, over];
      const orders = {
        "in order": [frames],
        "in order, twice": [frames, frames],
        "the end first": [[over, d, bc, a, began], [began, over]],
        "mixed, twice": [[bc, began, over], [d, a, bc, over, began]],
        "one event in two frames": [[[d[0], a[0]], bc, [d[0], ...over], began]],
      };
      const document = { type: "SESSION", start: 1, end: 7, children: [...a, ...bc, ...d, over[0]] };
      for (const [order, rounds] of Object.entries(orders)) {
        let cursor;
        for (const round of rounds) {
          // The gateway closes after an end, so what follows it comes on another socket.
          let session = openSession(t, url, order);
          for (const frame of round) {
            ({ cursor } = await session.exchange(frame));
            if (frame.at(-1).type === "SESSION_END") {
              assert.equal((await session.ends()).code, 1000);
              session = openSession(t, url, order);
            }
          }
          session.socket.close();
        }
        const { status, text } = await get(url, order, { after: cursor, wait: 20_000 });
        assert.equal(status, 200, text);
        assert.deepEqual(JSON.parse(text), { session_id: order, ...document }, order);
      }
    });
  });
}

test("the gateway's role of PostgreSQL may read documents, and cannot change anything", { skip: without("kafka", "postgres") }, async (t) => {
  const { database, url } = await startSessions(t, postgres);
  await send(WebSocket, url, ORIGINAL.id, ORIGINAL.frames);
  await ended(url, ORIGINAL.id);
  const relations = `SELECT relname FROM pg_class WHERE relnamespace = '"${database.schema}"'::regnamespace AND relkind IN ('r', 'v')`;
  const names = database.asReader(relations).stdout.split("\n").filter(Boolean);
  assert.ok(names.length > 0);
  for (const name of names) {
    assert.match(database.asReader(`DELETE FROM "${database.schema}"."${name}"`).stderr, /permission denied/, name);
  }
  assert.match(database.asReader(`CREATE TABLE "${database.schema}".own (id int)`).stderr, /permission denied/);
  assert.match(database.asReader(`DROP SCHEMA "${database.schema}" CASCADE`).stderr, /must be owner/);
  assert.deepEqual(await ended(url, ORIGINAL.id), ORIGINAL.document);
});

test("an X-Request-Id is taken over and answered back, and one is made when none is sent", { skip: without("kafka") }, async (t) => {
  const { url } = await startSessions(t, sqlite);
  const frames = `${url}/websocket`.replace("http", "ws");
  const sent = { "X-Request-Id": "request-1" };
  const { received: [{ cursor }] } = await send(WebSocket, url, "ids", [[event(1, "one")]], { ack: true });
  const { headers: { etag } } = await get(url, "ids", { after: cursor, wait: 20_000 });
  const upgraded = async (headers) => {
    const socket = openSocket(t, `${frames}?session_id=ids`, { headers });
    const [response] = await once(socket.socket, "upgrade");
    return { status: 101, headers: response.headers };
  };
  const answers = {
    101: upgraded,
    200: (headers) => get(url, "ids", {}, headers),
    304: (headers) => get(url, "ids", {}, { ...headers, "If-None-Match": etag }),
    400: (headers) => request(`${url}/data`, { headers }),
    404: (headers) => get(url, "unknown", {}, headers),
    "400 of a handshake": (headers) => rejected(frames, { headers }),
  };
  const made = new Set();
  for (const [what, ask] of Object.entries(answers)) {
    const own = await ask(sent);
    assert.deepEqual([own.status, own.headers["x-request-id"]], [parseInt(what), sent["X-Request-Id"]], what);
    for (const headers of [{}, { "X-Request-Id": "x".repeat(129) }]) {
      const id = (await ask(headers)).headers["x-request-id"];
      assert.match(id, /^[0-9a-f]{16}$/, what);
      made.add(id);
    }
  }
  assert.equal(made.size, 2 * Object.keys(answers).length);
});

test("a frame is a record as it was sent, under its session's id in quotes, with the id of its request", { skip: without("kafka", "kcat") }, async (t) => {
  const { url, topic } = await startSessions(t, sqlite);
  const texts = ['[{"timestamp": 1.50,\n "type":"EVENT",  "name":"\\u00e4 ä"}]', '[{"timestamp":2,"type":"SESSION_END"}]'];
  const socket = openSocket(t, address(url, "/websocket", ORIGINAL.id), { headers: { "X-Request-Id": "request-1" } });
  await once(socket.socket, "open");
  for (const text of texts) {
    socket.socket.send(text);
  }
  assert.equal((await socket.ends()).code, 1000);
  const kcat = spawnSync("kcat", ["-C", "-q", "-J", "-e", "-b", kafkaAddress, "-t", topic, "-o", "beginning"], { encoding: "utf8" });
  const records = kcat.stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  assert.deepEqual(records.map(({ key, payload }) => [key, payload]), texts.map((text) => [`"${ORIGINAL.id}"`, text]));
  for (const { headers } of records) {
    assert.equal(headers[headers.indexOf("x-request-id") + 1], "request-1");
  }
});

const GOOD = [event(1, "good")];

/** Frames that are rejected, with the rule that each breaks; the session goes on. */
const broken = {
  "no JSON": ['[{"timestamp": 1, "type": "EVENT"', "a frame must be JSON"],
  "an object": [JSON.stringify(GOOD[0]), "a frame must be a JSON array of events"],
  "an empty array": [[], "a frame must contain at least one event"],
  "an unknown type": [[GOOD[0], { ...GOOD[0], type: "CLICK" }], '"type" must be "SESSION_START", "SESSION_END" or "EVENT"', 1],
  "a timestamp that is a text": [[{ ...GOOD[0], timestamp: "1569972083" }], '"timestamp" must be a finite number', 0],
  "an end with a timestamp that is a text": [[GOOD[0], end("1569972086")], '"timestamp" must be a finite number', 1],
  "deep nesting": [`[{"timestamp":1,"type":"EVENT","x":${"[".repeat(50_000)}${"]".repeat(50_000)}}]`, "a frame must not be nested deeper than 64 levels"],
  "a binary frame": [Buffer.from(JSON.stringify(GOOD)), "a frame must be text, not binary"],
};
const answer = (error, element = null) => ({ type: "error", element, error });

/** Frames that end their connection: with which code and reason. As text, also where they are bytes. */
const ending = {
  "a frame of 10 MB": [`[${" ".repeat(10_000_000)}]`, { code: 1009, reason: "the frame is too large" }],
  "a frame that is not UTF-8": [Buffer.from('[{"timestamp":1,"type":"EVENT","name":"\xff"}]', "latin1"), { code: 1007, reason: "the frame is not UTF-8" }],
};

const notIds = {
  "no id": [undefined, "query is missing session_id"],
  "an empty id": ["", "query is missing session_id"],
  "an id with NUL": ["a%00b", "a session id must not contain NUL"],
  "an id of 10 KB": ["a".repeat(10 << 10), "a session id has at most 256 bytes of UTF-8"],
};
const withId = (base, path, id) => `${base}${path}${id === undefined ? "" : `?session_id=${id}`}`;

/** The good frame, and nothing else, is in the document. */
async function hasOnlyGood(url, id, { cursor }) {
  const { status, text } = await get(url, id, { after: cursor, wait: 20_000 });
  assert.equal(status, 200, text);
  assert.deepEqual(JSON.parse(text), { session_id: id, type: "SESSION", start: null, end: null, children: GOOD });
}

describe("bad frames", { skip: without("kafka"), concurrency: 3 }, () => {
  test("a frame that breaks a rule is answered with it, and the next good one is in the document", async (t) => {
    const { url } = await startSessions(t, sqlite);
    for (const [what, [frame, ...rule]] of Object.entries(broken)) {
      await t.test(what, async (t) => {
        const session = openSession(t, url, what);
        assert.deepEqual(await session.exchange(frame), answer(...rule));
        await hasOnlyGood(url, what, await session.exchange(GOOD));
        assert.equal(session.closed, undefined);
      });
    }
  });

  test("python receives the same answers, in order, and the end of its session", { skip: without("python") }, async (t) => {
    const { url } = await startSessions(t, sqlite);
    const frames = Object.values(broken).flatMap(([frame], at) => [frame, [event(at, "good")]]);
    const events = await inPython(address(url, "/websocket", "python", { ack: 1 }), [...frames, [start(0), end(1)]]);
    assert.deepEqual(events.pop(), { closed: 1000, reason: "the session has ended" });
    const received = events.map(({ received }) => received);
    const acks = received.filter(({ type }) => type === "ack");
    assert.deepEqual(acks.map(({ offset }) => offset), Object.keys(acks).map(Number));
    const expected = [...Object.values(broken).flatMap(([, ...rule]) => [answer(...rule), "ack"]), "ack"];
    assert.deepEqual(received.map((of) => (of.type === "ack" ? "ack" : of)), expected);
    const document = await ended(url, "python");
    assert.deepEqual(document.children, Object.keys(Object.keys(broken)).map((at) => event(Number(at), "good")));
  });

  test("ten of them in a row close the connection with 1008", async (t) => {
    const { url } = await startSessions(t, sqlite);
    const session = openSession(t, url, "rows");
    for (let count = 0; count < 9; count += 1) await session.exchange([]);
    // A good one in between begins a new row.
    const ack = await session.exchange(GOOD);
    for (let count = 0; count < 10; count += 1) {
      assert.equal(session.closed, undefined);
      assert.equal((await session.exchange([])).type, "error");
    }
    assert.deepEqual(await session.ends(), { code: 1008, reason: "too many invalid frames in a row" });
    await hasOnlyGood(url, "rows", ack);
  });

  test("a frame that cannot be read closes its connection alone, after what came before it", async (t) => {
    const { url } = await startSessions(t, sqlite);
    const other = openSession(t, url, "other");
    await other.opens();
    for (const [what, [frame, closed]] of Object.entries(ending)) {
      await t.test(what, async (t) => {
        const session = openSession(t, url, what);
        await session.opens();
        session.socket.send(JSON.stringify(GOOD));
        session.socket.send(frame, { binary: false });
        assert.deepEqual(await session.ends(), closed);
        assert.deepEqual(session.frames.map(({ type }) => type), ["ack"]);
        const next = openSession(t, url, what);
        await hasOnlyGood(url, what, await next.exchange(GOOD));
      });

      await t.test(`${what}, from python`, { skip: without("python") }, async () => {
        const id = `${what}, from python`;
        const events = await inPython(address(url, "/websocket", id, { ack: 1 }), [GOOD, { text: Buffer.from(frame).toString("base64") }]);
        assert.deepEqual(events.map(({ received, ...of }) => received?.type ?? of), ["ack", { closed: closed.code, reason: closed.reason }]);
        await hasOnlyGood(url, id, events[0].received);
      });
    }
    await hasOnlyGood(url, "other", await other.exchange(GOOD));
  });

  test("a frame of 256 KiB is taken, and one byte more is not", async (t) => {
    const { url } = await startSessions(t, sqlite);
    const session = openSession(t, url, "sizes");
    const bare = JSON.stringify([event(1, "")]).length;
    const largest = [event(1, "x".repeat((256 << 10) - bare))];
    const { cursor } = await session.exchange(largest);
    const { json } = await get(url, "sizes", { after: cursor, wait: 20_000 });
    assert.ok(json.children[0].name === largest[0].name);
    session.socket.send(`${JSON.stringify(largest)} `);
    assert.equal((await session.ends()).code, 1009);
  });

  test("a handshake without a session id that can be used is rejected with the reason, as is a read", async (t) => {
    const { url, gateway } = await startSessions(t, sqlite);
    for (const [what, [id, reason]] of Object.entries(notIds)) {
      await t.test(what, async (t) => {
        const socket = withId(url.replace("http", "ws"), "/websocket", id);
        for (const { status, text, headers } of [await rejected(socket), await request(withId(url, "/data", id))]) {
          assert.deepEqual([status, text], [400, reason]);
          assert.match(headers["content-type"], /^text\/plain/);
        }
        if (python) {
          assert.deepEqual(await inPython(socket, []), [{ rejected: 400, text: reason }]);
        }
      });
    }
    const longest = "ä".repeat(128);
    await hasOnlyGood(url, longest, await openSession(t, url, longest).exchange(GOOD));
    assert.equal(await gateway.metric("herald_gateway_sockets"), 1);
  });
});
