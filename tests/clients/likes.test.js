// Likes: they go in over HTTP as with the original, and come out of Kafka, and as results of windows. With fetch, npm's eventsource
// and python's urllib.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { EventSource } from "eventsource";

import { VIDEOS, like, metadata } from "../page/likes.js";
import { kafkaAddress, python, without } from "./support/environment.js";
import { request } from "./support/http.js";
import { newTopic } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { until } from "./support/wait.js";

const kafka = ["--kafka-bootstrap-servers", kafkaAddress];

/** A gateway with topics of its own. It ends with the test. */
async function startGateway(t, options = []) {
  const [events, likes, port, own] = [await newTopic(), await newTopic(3), await freePort(), await freePort()];
  const addresses = ["--listen", `127.0.0.1:${port}`, "--likes-listen", `127.0.0.1:${own}`];
  const gateway = new Service("gateway", [...kafka, "--events-topic", events, "--likes-topic", likes, ...addresses, ...options], await freePort());
  t.after(() => gateway.kill());
  await gateway.start();
  return { gateway, likes, url: `http://127.0.0.1:${port}`, own: `http://127.0.0.1:${own}` };
}

/** The records of a topic, as kcat reads them. */
function records(topic) {
  const { stdout } = spawnSync("kcat", ["-C", "-q", "-J", "-e", "-b", kafkaAddress, "-t", topic, "-o", "beginning"], { encoding: "utf8" });
  return stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

test("a like is the bare identifier in Kafka, at each address of the original and Herald's", { skip: without("kafka", "kcat") }, async (t) => {
  const { likes, url, own } = await startGateway(t);
  const videos = await metadata(`${own}/dev`);
  assert.deepEqual(videos.map(({ unique_identifier: id }) => id), VIDEOS);
  assert.ok(videos.every(({ title }) => typeof title === "string"));
  const liked = [];
  for (const base of [url, `${url}/dev`, own, `${own}/dev`]) {
    for (const id of [...VIDEOS, "ä/+ %\"'"]) {
      assert.deepEqual(await like(base, id), { "new video": id });
      liked.push(id);
    }
  }
  if (python) {
    const script = fileURLToPath(new URL("python/likes.py", import.meta.url));
    const { stdout, stderr } = spawnSync(python, [script, `${own}/dev`], { encoding: "utf8" });
    assert.deepEqual(JSON.parse(stdout || "null"), VIDEOS.map((id) => [200, { "new video": id }]), stderr);
    liked.push(...VIDEOS);
  }
  const found = records(likes);
  assert.deepEqual(found.map(({ payload }) => payload).sort(), liked.sort());
  assert.deepEqual(new Set(found.map(({ key }) => key ?? null)), new Set([null]));
});

test("a page of any origin may like at the address of the likes, and the body is the original's", { skip: without("kafka") }, async (t) => {
  const { own, url } = await startGateway(t);
  const path = `/dev/videos/${VIDEOS[0]}/likes`;
  const headers = { Origin: "https://a.example" };
  const asking = { ...headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type" };
  const preflight = await request(`${own}${path}`, { method: "OPTIONS", headers: asking });
  assert.deepEqual([preflight.status, preflight.headers["access-control-allow-origin"]], [204, "*"]);
  assert.match(preflight.headers["access-control-allow-methods"], /POST/);
  assert.match(preflight.headers["access-control-allow-headers"], /content-type/);
  const liked = await request(`${own}${path}`, { method: "POST", headers });
  assert.deepEqual([liked.status, liked.text], [200, `{"new video": "${VIDEOS[0]}"}`]);
  assert.equal(liked.headers["access-control-allow-origin"], "*");
  assert.equal((await request(`${url}${path}`, { method: "POST", headers })).status, 403);
  assert.equal((await request(`${own}/data?session_id=a`)).status, 404);
  // The likes with their headers are for the page of this address.
  for (const path of [`windows/stream?video=${VIDEOS[0]}`, `windows/1min/0/${VIDEOS[0]}/messages`]) {
    const read = await request(`${own}/${path}`, { headers });
    assert.deepEqual([read.status, read.headers["access-control-allow-origin"]], [403, undefined], path);
  }
});

describe("windows of likes", { skip: without("kafka") }, () => {
  test("each like is in one result, which can be opened to the likes that it was counted from", async (t) => {
    const [partitioned, results] = [await newTopic(3), await newTopic(3)];
    const windows = ["--partitioned-likes-topic", partitioned, "--windows", `2s=${results}`];
    const { likes, own } = await startGateway(t, windows);
    const counting = ["--projections", "windows", "--group-prefix", likes, "--likes-topic", likes, ...windows];
    const projector = new Service("projector", [...kafka, ...counting, "--window-grace", "500ms", "--interim-interval", "0s"], await freePort());
    t.after(() => projector.kill());
    await projector.start();

    const query = new URLSearchParams(VIDEOS.map((id) => ["video", id]));
    const source = new EventSource(`${own}/windows/stream?${query}`);
    t.after(() => source.close());
    const rows = new Map();
    for (const name of ["snapshot", "change"]) {
      source.addEventListener(name, ({ data }) => JSON.parse(data).forEach((row) => rows.set(`${row.video_uid} ${row.start}`, row)));
    }
    const sums = { [VIDEOS[0]]: 30, [VIDEOS[1]]: 12 };
    for (const [id, count] of Object.entries(sums)) {
      await Promise.all(Array.from({ length: count }, () => like(own, id)));
    }
    const sum = (of) => [...rows.values()].filter(({ video_uid: id, final }) => final && id === of).reduce((sum, { count }) => sum + count, 0);
    await until(() => `all likes in ${JSON.stringify([...rows.values()])}`, () => VIDEOS.every((id) => sum(id) >= sums[id]), 60_000);
    const messages = new Set();
    for (const { type, start, end, video_uid: id, count } of rows.values()) {
      const { status, text, json } = await request(`${own}/windows/${type}/${start}/${id}/messages`);
      assert.equal(status, 200, text);
      assert.equal(json.result.count, count);
      assert.equal(json.messages.length, count);
      for (const { partition, offset, timestamp, data } of json.messages) {
        assert.equal(data, id);
        assert.ok(start <= timestamp && timestamp < end, `${timestamp} is in the window`);
        messages.add(`${partition} ${offset}`);
      }
    }
    assert.equal(messages.size, 42);
  });
});
