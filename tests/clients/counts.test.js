// Food counts: `{"food": …}` goes into Kafka, and the rows come out of /aggregated and its stream; and, in the original's own file,
// out of SQLite. With fetch, npm's eventsource, and python's urllib and sqlite3.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { EventSource } from "eventsource";

import { counted, counts } from "../page/counts.js";
import { postgres, sqlite } from "./support/databases.js";
import { kafkaAddress, python, without } from "./support/environment.js";
import { newTopic, publish } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { Service } from "./support/service.js";
import { until } from "./support/wait.js";

const kafka = ["--kafka-bootstrap-servers", kafkaAddress];

const food = (name, partition = 0) => ({ value: JSON.stringify({ food: name }), partition });

function inPython(source) {
  const { status, stdout, stderr } = spawnSync(python, [fileURLToPath(new URL("python/counts.py", import.meta.url)), source], { encoding: "utf8" });
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

/** A projector that counts the foods of a new topic. It ends with the test. */
async function startProjector(t, options) {
  const topic = await newTopic(2);
  const args = ["--projections", "counts", "--counts-topic", topic, "--group-prefix", topic, ...options];
  const projector = new Service("projector", [...kafka, ...args], await freePort());
  t.after(() => projector.kill());
  await projector.start();
  return { projector, topic };
}

async function startGateway(t, database) {
  const [port, own] = [await freePort(), await freePort()];
  const topic = await newTopic();
  const addresses = ["--events-topic", topic, "--listen", `127.0.0.1:${port}`, "--counts-listen", `127.0.0.1:${own}`];
  const gateway = new Service("gateway", [...kafka, ...addresses, ...database.read], await freePort());
  t.after(() => gateway.kill());
  await gateway.start();
  return { gateway, url: `http://127.0.0.1:${port}`, own: `http://127.0.0.1:${own}` };
}

for (const [name, newDatabase, needs] of [["SQLite", sqlite, ["kafka"]], ["PostgreSQL", postgres, ["kafka", "postgres"]]]) {
  describe(`counts in ${name}`, { skip: without(...needs), concurrency: 2 }, () => {
    test("the rows are those of the original, with GET and with POST", { skip: without("python") }, async (t) => {
      const database = await newDatabase();
      t.after(() => database.remove());
      const { topic } = await startProjector(t, database.written);
      const { url, own } = await startGateway(t, database);
      assert.deepEqual(await counts(own), []);
      await publish(topic, ["pie", "fig", "pie", "Äpfel & \"nuts\"", "pie"].map((name) => food(name)));
      const rows = [{ count: 3, food: "pie" }, { count: 1, food: "fig" }, { count: 1, food: 'Äpfel & "nuts"' }];
      assert.deepEqual(await counted(own, { pie: 3, fig: 1, 'Äpfel & "nuts"': 1 }), rows);
      assert.deepEqual(await counts(url, { method: "POST" }), rows);
      const answers = inPython(own);
      assert.deepEqual(answers, Array(2).fill({ rows, status: 200, type: "application/json" }));
      assert.deepEqual(await (await fetch(`${own}/aggregated?order=count&limit=1`)).json(), rows.slice(0, 1));
    });

    test("a stream goes on after the gateway was killed, with a snapshot of what is counted by then", async (t) => {
      const database = await newDatabase();
      t.after(() => database.remove());
      const { topic } = await startProjector(t, database.written);
      const { gateway, own } = await startGateway(t, database);
      await publish(topic, [food("pie"), food("fig", 1)]);
      await counted(own, { pie: 1, fig: 1 });
      const source = new EventSource(`${own}/aggregated/stream`);
      t.after(() => source.close());
      const events = [];
      for (const name of ["snapshot", "change"]) {
        source.addEventListener(name, ({ data }) => events.push([name, JSON.parse(data)]));
      }
      await until("a snapshot", () => events.length === 1);
      const [[name, snapshot]] = events;
      assert.equal(name, "snapshot");
      assert.deepEqual(Object.fromEntries(snapshot.map(({ food, count }) => [food, count])), { pie: 1, fig: 1 });
      await publish(topic, [food("pie")]);
      await until("a change", () => events.length === 2);
      await gateway.kill();
      await publish(topic, [food("fig"), food("fig")]);
      await gateway.start();
      await until(() => `both figs in ${JSON.stringify(events)}`, () => events.at(-1)[1].some(({ food, count }) => food === "fig" && count === 3), 40_000);
      const back = events.findLastIndex(([name]) => name === "snapshot");
      assert.ok(back >= 2, JSON.stringify(events));
      const shown = new Map(events.slice(back).flatMap(([, rows]) => rows.map(({ food, count }) => [food, count])));
      assert.deepEqual(Object.fromEntries(shown), { pie: 2, fig: 3 });
    });
  });
}

test("the original's API reads its own file, whose table and journal stay as they were", { skip: without("kafka", "python") }, async (t) => {
  const folder = await mkdtemp(path.join(os.tmpdir(), "herald-counts-"));
  t.after(() => rm(folder, { recursive: true }));
  const file = path.join(folder, "db.sqlite");
  const { topic } = await startProjector(t, ["--counts-database", file]);
  await publish(topic, ["pie", "fig", "pie"].map((name) => food(name)));
  const rows = [{ count: 2, food: "pie" }, { count: 1, food: "fig" }];
  const read = await until("the counts", () => {
    const [found] = inPython(file);
    return found.rows.reduce((sum, { count }) => sum + count, 0) === 3 && found;
  });
  const schema = 'CREATE TABLE "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))';
  assert.deepEqual({ ...read, schema: read.schema.replace(/\s+/g, " ") }, { rows, schema, journal: "delete" });
});
