// Rooms, as the two clients of the original use them: python-socketio, and socket.io-client in a page of another origin.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { io as newest } from "socket.io-client";
import { io as oldest } from "socket.io-client-4.0";

import { startConsumer } from "./support/consumer.js";
import { python, without } from "./support/environment.js";
import { newTopic, publish } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { pause, until } from "./support/wait.js";

const script = fileURLToPath(new URL("python/rooms.py", import.meta.url));

// The identifiers with which the original is tried out.
const FIRST = "93f98662-8907-4f43-bb4c-280501481046";
const SECOND = "69e7266c-753e-4ed3-b7fc-9035133a293f";

const WINDOWS = [1, 5, 10];

/** A consumer of three topics of results, at its own port and at one that has nothing but rooms. */
async function startRooms(t) {
  const [broadcasts, one, five, ten] = await Promise.all([newTopic(), newTopic(), newTopic(), newTopic()]);
  const port = await freePort();
  const options = ["--rooms", "--rooms-listen", `127.0.0.1:${port}`];
  const names = { 1: one, 5: five, 10: ten };
  const topics = Object.entries(names).flatMap(([window, topic]) => [`--likes-${window}-min-aggregation-topic-name`, topic]);
  const consumer = await startConsumer(t, broadcasts, [...options, ...topics]);
  return {
    consumer,
    broadcasts,
    urls: { "the consumer's port": consumer.url, "the second port": `http://127.0.0.1:${port}` },
    topic: (window) => names[window],
    /** Waits until the consumer has read as many results of each window. */
    read: (counts) =>
      until("the results are read", async () => {
        const found = Object.entries(counts).map(async ([window, count]) => {
          return (await consumer.metric("herald_messages_consumed_total", `topic="${names[window]}"`)) === count;
        });
        return (await Promise.all(found)).every(Boolean);
      }),
    /** Writes a result; without a key, as the original does, unless `key` is given. */
    result: (window, id, count, key) =>
      publish(names[window], [{ key, value: JSON.stringify({ type: `${window}min`, video_uid: id, count, __faust: {} }) }]),
  };
}

/** The page of the original: it asks for the windows first, then registers an empty list, then what it shows. */
function openPage(t, io, url) {
  // No origin is sent by node; that of a page is tested on the raw protocol.
  const socket = io(url, { forceNew: true, transports: ["websocket"] });
  t.after(() => socket.close());
  const page = { socket, results: [], errors: [] };
  for (const window of WINDOWS) {
    socket.on(`live_aggregations_${window}`, (payload) => page.results.push([window, payload]));
  }
  socket.on("error", (payload) => page.errors.push(payload));
  for (const window of WINDOWS) {
    socket.emit(`consume_${window}_min_aggregations`, {});
  }
  socket.emit("register_room", { rooms: [] });
  page.show = (...rooms) => socket.emit("register_room", { rooms });
  page.takes = (count) => until(() => `${count} results; there are ${JSON.stringify(page.results)}`, () => page.results.length >= count);
  return page;
}

function startPython(t, url, rooms, transports) {
  const child = spawn(python, [script, url, rooms.join(","), transports], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(child, "exit");
  t.after(() => child.kill("SIGKILL"));
  const client = { text: "" };
  child.stdout.setEncoding("utf8").on("data", (text) => (client.text += text));
  client.lines = () => client.text.split("\n").slice(0, -1).map((line) => JSON.parse(line));
  client.results = () => client.lines().filter(({ event }) => event.startsWith("live_"));
  client.takes = (count) => until(() => `${count} results among:\n${client.text}`, () => client.results().length >= count, 40_000);
  client.connected = () => until("python-socketio is connected", () => client.text.includes('"connect"'), 40_000);
  client.leave = async () => {
    child.stdin.end();
    const [code] = await exited;
    return code;
  };
  return client;
}

const sorted = (results) => results.map((result) => JSON.stringify(result)).sort();

describe("rooms with socket.io-client", { skip: without("kafka"), concurrency: true }, () => {
  for (const [version, io] of [["4.0", oldest], ["4.8", newest]]) {
    test(`${version}: a page that asks first and registers later receives each result of its rooms once`, async (t) => {
      const rooms = await startRooms(t);
      await rooms.result(1, FIRST, 1);
      await rooms.result(1, FIRST, 2);
      await rooms.result(5, SECOND, 3, SECOND);
      await rooms.read({ 1: 2, 5: 1 });
      for (const [where, url] of Object.entries(rooms.urls)) {
        await t.test(where, async (t) => {
          const page = openPage(t, io, url);
          page.show(FIRST, SECOND);
          await page.takes(2);
          page.show(FIRST, SECOND);
          page.show(SECOND, "never counted");
          page.show(1);
          await until("the error", () => page.errors.length > 0);
          const own = `${where} ${version}`;
          page.show(own);
          await pause(100);
          await rooms.result(10, own, 5, own);
          await rooms.result(1, "another", 9);
          await rooms.result(10, own, 6);
          await page.takes(4);
          page.socket.emit("leave_room", { rooms: [own] });
          page.show(1);
          await until("the next error", () => page.errors.length > 1);
          await rooms.result(10, own, 7);
          await rooms.result(10, FIRST, 8);
          await page.takes(5);

          assert.deepEqual(sorted(page.results.slice(0, 2)), sorted([
            [1, { id: FIRST, count: 2 }],
            [5, { id: SECOND, count: 3 }],
          ]));
          assert.deepEqual(page.results.slice(2), [
            [10, { id: own, count: 5 }],
            [10, { id: own, count: 6 }],
            [10, { id: FIRST, count: 8 }],
          ]);
          const sentence = 'the payload must be an object with rooms, an array of strings, such as {"rooms":["my-id"]}';
          assert.deepEqual(page.errors, [{ error: sentence }, { error: sentence }]);
          // So that the next address begins as this one did.
          await publish(rooms.topic(10), [{ key: FIRST, value: null }]);
          await rooms.result(10, `end of ${own}`, 0);
          const last = openPage(t, io, url);
          last.show(`end of ${own}`);
          await last.takes(1);
        });
      }
    });
  }

  test("a client of rooms at the second port receives no broadcasts, and at the first one the same results beside them", async (t) => {
    const rooms = await startRooms(t);
    const seen = Object.entries(rooms.urls).map(([where, url]) => {
      const page = openPage(t, newest, url);
      const events = [];
      page.socket.onAny((event) => events.push(event));
      page.show(FIRST);
      return { where, page, events };
    });
    await until("all are connected", () => seen.every(({ page }) => page.socket.connected));
    await publish(rooms.broadcasts, ["a broadcast"]);
    await rooms.result(1, FIRST, 1);
    await Promise.all(seen.map(({ page }) => page.takes(1)));
    const [first, second] = seen;
    await until("the broadcast", () => first.events.includes("message"));

    assert.deepEqual(new Set(first.events), new Set(["env", "custom_header", "start", "message", "live_aggregations_1"]));
    assert.deepEqual(second.events, ["live_aggregations_1"]);
  });

  test("a page that registers again after its consumer was killed receives the last values", async (t) => {
    const rooms = await startRooms(t);
    const page = openPage(t, newest, rooms.urls["the second port"]);
    page.socket.on("connect", () => page.show(FIRST));
    page.socket.io.on("reconnect", () => WINDOWS.forEach((window) => page.socket.emit(`consume_${window}_min_aggregations`)));
    await rooms.result(5, FIRST, 4);
    await page.takes(1);
    await rooms.consumer.kill();
    await rooms.result(5, FIRST, 5);
    await rooms.consumer.start();
    await page.takes(2);

    assert.deepEqual(page.results, [[5, { id: FIRST, count: 4 }], [5, { id: FIRST, count: 5 }]]);
  });
});

describe("rooms with python-socketio", { skip: without("kafka", "python"), concurrency: true }, () => {
  for (const transports of ["polling", "websocket", "polling,websocket"]) {
    test(`${transports}: a client that registers first and asks later receives each result of its rooms once`, async (t) => {
      const rooms = await startRooms(t);
      await rooms.result(1, FIRST, 1);
      await rooms.read({ 1: 1 });
      for (const [where, url] of Object.entries(rooms.urls)) {
        await t.test(where, async (t) => {
          const own = `${where} ${transports}`.replaceAll(",", " ");
          const client = startPython(t, url, [FIRST, own], transports);
          await client.connected();
          await client.takes(1);
          await pause(200);
          await rooms.result(1, own, 2);
          await rooms.result(5, own, 3, own);
          await rooms.result(10, SECOND, 4);
          await rooms.result(10, own, 5);
          await client.takes(4);

          assert.deepEqual(sorted(client.results()), sorted([
            { event: "live_aggregations_1", payload: { id: FIRST, count: 1 } },
            { event: "live_aggregations_1", payload: { id: own, count: 2 } },
            { event: "live_aggregations_5", payload: { id: own, count: 3 } },
            { event: "live_aggregations_10", payload: { id: own, count: 5 } },
          ]));
          assert.equal(await client.leave(), 0);
          await until("its rooms are empty", async () => (await rooms.consumer.metric("herald_rooms")) === 0);
        });
      }
    });
  }
});
