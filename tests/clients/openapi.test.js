// The description of the HTTP part: valid, and equal to the responses.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { describe, test } from "node:test";

import { Ajv2020 } from "ajv/dist/2020.js";

import { Consumer, startConsumer } from "./support/consumer.js";
import { binary, python, without } from "./support/environment.js";
import { head, openEvents, request } from "./support/http.js";
import { newTopic, publish, texts } from "./support/kafka.js";
import { freePort } from "./support/ports.js";
import { accessOptions, claims, token } from "./support/tokens.js";
import { until } from "./support/wait.js";
import { openSocket } from "./support/websocket.js";

const JSON_TYPE = "application/json";
const handshake = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==" };

/** Follows a reference within the description. */
function resolve(description, value) {
  const pointer = value?.$ref;
  return pointer ? pointer.slice(2).split("/").reduce((at, name) => at[name], description) : value;
}

/** Fails unless a value matches a schema of the description, with no field that it does not name. */
function validator(description) {
  const ajv = new Ajv2020({ strict: false, formats: { "date-time": (text) => !Number.isNaN(Date.parse(text)) } });
  const schemas = Object.fromEntries(Object.entries(description.components.schemas).map(([name, schema]) => [name, closed(schema)]));
  ajv.addSchema({ $id: "herald:/", components: { schemas } });
  return (schema, value) => {
    const check = ajv.compile(JSON.parse(JSON.stringify(closed(schema)).replaceAll('"#/', '"herald:/#/')));
    assert.ok(check(value), `${ajv.errorsText(check.errors)} in ${JSON.stringify(value).slice(0, 500)}`);
  };
}

/** The same schema, which refuses fields that it does not name. Clients should not; a test should. */
function closed(schema) {
  if (Array.isArray(schema)) {
    return schema.map(closed);
  }
  if (schema === null || typeof schema !== "object") {
    return schema;
  }
  const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]));
  return schema.type === "object" && schema.properties && !("additionalProperties" in schema) ? { ...copy, additionalProperties: false } : copy;
}

describe("openapi.json", { skip: without("kafka"), concurrency: true }, () => {
  test("is valid", { skip: without("python") }, async (t) => {
    const consumer = await startConsumer(t, await newTopic());
    const folder = await mkdtemp(path.join(os.tmpdir(), "herald-openapi-"));
    t.after(() => rm(folder, { recursive: true }));
    const file = path.join(folder, "openapi.json");
    const { json: description, text } = await request(`${consumer.url}/openapi.json`);
    await writeFile(file, text);
    const validated = spawnSync(python, ["-m", "openapi_spec_validator", file], { encoding: "utf8" });
    assert.equal(validated.status, 0, validated.stdout + validated.stderr);
    assert.match(description.openapi, /^3\.1\./);
    const version = spawnSync(binary("consumer"), ["--version"], { encoding: "utf8" }).stdout.trim();
    assert.equal(version, `consumer ${description.info.version}`);
  });

  test("each endpoint, parameter and status is described, and no other exists", async (t) => {
    const topic = await newTopic();
    await publish(topic, [
      { value: "text", key: "key", headers: { one: "1", many: ["2", "3"], bytes: Buffer.from([0xff]) } },
      { value: Buffer.from([0xff]), key: Buffer.from([0xfe]) },
      { value: null },
      { value: "x".repeat(2001) },
      ...texts("message", 20).map((value) => ({ value })),
    ]);
    const options = ["--max-message-bytes", "2000"];
    const consumer = await startConsumer(t, topic, options);
    const full = await startConsumer(t, topic, [...options, "--max-connections", "1"]);
    await openEvents(t, `${full.url}/events`);
    const folder = mkdtempSync(path.join(os.tmpdir(), "herald-openapi-"));
    t.after(() => rmSync(folder, { recursive: true }));
    const closed = await startConsumer(t, topic, [...options, ...accessOptions(folder)]);
    const description = (await request(`${consumer.url}/openapi.json`)).json;
    const validate = validator(description);
    const { json: newest } = await request(`${consumer.url}/messages?limit=5`);

    const foreign = { headers: { Origin: "https://evil.example" } };
    const upgrade = { headers: handshake };
    const time = "2026-01-31T12:00:00Z";
    // For each address and each of its statuses, requests that are answered so. `full` is a replica without room, `closed` one that
    // wants tokens.
    const examples = {
      "/": { 200: [[""]], 403: [["", foreign]], 503: [["", {}, full]] },
      "/client.js": { 200: [[""]], 403: [["", foreign]], 503: [["", {}, full]] },
      "/openapi.json": { 200: [[""]], 403: [["", foreign]], 503: [["", {}, full]] },
      "/tickets": {
        201: [["", { headers: { authorization: `Bearer ${token(claims({}))}` } }, closed]],
        401: [["", {}, closed]],
        403: [["", foreign]],
        404: [[""]],
        503: [["", {}, full]],
      },
      "/config": { 200: [[""]], 401: [["", {}, closed]], 403: [["", foreign]], 503: [["", {}, full]] },
      "/events": {
        200: [[""], [`?topic=${topic}`], [`?after=${newest.after}`], ["?from=earliest"], [`?from=${time}`], ["?last=0"], ["?last=500"], ["?binary=base64"],
          ["?key=a&key=b"], ["?from=latest-per-key&key=a"], ["?format=json"], ["?format=text"], ["", { headers: { "Last-Event-ID": newest.before } }], ["", {}, full]],
        400: [["?last=501"], ["?last=-1"], ["?from=now"], ["?binary=hex"], ["?format=xml"], ["?last=1&last=2"], ["?key="]],
        401: [["", {}, closed], [`?topic=${topic}`, { headers: { authorization: "Bearer abc" } }, closed]],
        403: [["", foreign]],
        404: [["?topic=unknown"]],
      },
      "/ws": {
        101: [["", upgrade], [`?topic=${topic}`, upgrade], [`?after=${newest.after}`, upgrade], ["?from=earliest", upgrade], ["?last=500", upgrade],
          ["?key=a&key=b", upgrade], ["?binary=base64", upgrade], ["?last=501", upgrade], ["?last=1&last=2", upgrade], ["?topic=unknown", upgrade], ["", upgrade, full]],
        403: [["", { headers: { ...handshake, ...foreign.headers } }]],
        426: [[""], ["", { headers: { ...handshake, "Sec-WebSocket-Version": "8" } }]],
      },
      "/messages": {
        200: [[""], [`?topic=${topic}`], [`?after=${newest.before}`], [`?before=${newest.before}`], ["?from=earliest"], [`?from=${time}`], ["?limit=1"],
          ["?limit=500"], ["?key=a&key=b"], ["?binary=base64"], ["?after=garbled"], ["?from=earliest&binary=base64"]],
        400: [["?limit=0"], ["?limit=501"], ["?from=now"], ["?binary=hex"], ["?after=x&before=x"]],
        401: [["", {}, closed]],
        403: [["", foreign]],
        404: [["?topic=unknown"]],
        503: [["", {}, full]],
      },
    };

    assert.deepEqual(Object.keys(description.paths).sort(), Object.keys(examples).sort(), "addresses");
    for (const [address, operations] of Object.entries(description.paths)) {
      await t.test(address, async () => {
        const [[method, operation], ...others] = Object.entries(operations);
        assert.deepEqual(others, []);
        assert.equal(method, address === "/tickets" ? "post" : "get");
        assert.deepEqual(Object.keys(operation.responses), Object.keys(examples[address]), "statuses");
        const asked = Object.values(examples[address]).flat().map(([query, { headers = {} } = {}]) => [...new URLSearchParams(query).keys(), ...Object.keys(headers)]).flat();
        for (const parameter of operation.parameters ?? []) {
          const { name } = resolve(description, parameter);
          assert.ok(asked.includes(name), `${name} has an example`);
        }
        for (const [status, requests] of Object.entries(examples[address])) {
          const { content = {}, headers = {} } = resolve(description, operation.responses[status]);
          const [type, { schema } = {}] = Object.entries(content)[0] ?? [];
          for (const [query, options, of = consumer] of requests) {
            const url = `${of.url}${address}${query}`;
            const answer = await (type === JSON_TYPE ? request : head)(url, { method: method.toUpperCase(), ...options });
            assert.equal(answer.status, Number(status), url);
            assert.equal(answer.headers["content-type"]?.split(";")[0], type, url);
            if (type === JSON_TYPE) {
              validate(schema, address === "/openapi.json" && status === "200" ? answer.text : answer.json);
            }
            for (const [name, header] of Object.entries(headers)) {
              const { schema } = resolve(description, header);
              const value = answer.headers[name.toLowerCase()];
              validate(schema, schema.type === "integer" ? Number(value) : value);
            }
          }
        }
      });
    }
  });

  test("the events of a stream match their description", async (t) => {
    const topic = await newTopic();
    await publish(topic, [{ value: "text", key: "k", headers: { a: "1" } }, { value: Buffer.from([0xff]) }, { value: null }]);
    const consumer = await startConsumer(t, topic, ["--drain-delay", "0s", "--drain-window", "0s"]);
    const validate = validator((await request(`${consumer.url}/openapi.json`)).json);
    const event = { $ref: "#/components/schemas/Event" };
    const sockets = [
      openSocket(t, `${consumer.ws}?from=earliest`),
      openSocket(t, `${consumer.ws}?from=earliest&binary=base64`),
      openSocket(t, `${consumer.ws}?after=garbled`),
      openSocket(t, `${consumer.ws}?last=501`),
    ];
    const stream = await openEvents(t, `${consumer.url}/events?from=earliest&format=json`);
    await stream.takes(2);
    await sockets[1].takes("message", 3);
    consumer.terminate();
    await Promise.all(sockets.map((socket) => socket.ends()));
    await until("the end of the stream", () => stream.ended);

    const frames = [...sockets.flatMap(({ frames }) => frames), ...stream.events.map(({ data }) => JSON.parse(data))];
    for (const frame of frames) {
      validate(event, frame);
    }
    assert.deepEqual(new Set(frames.map(({ type }) => type)), new Set(["start", "message", "gap", "bye"]));
  });

  test("the responses of a consumer without Kafka match their description", async (t) => {
    const consumer = new Consumer(["my-topic"], ["--kafka-bootstrap-servers", `127.0.0.1:${await freePort()}`], await freePort(), await freePort());
    t.after(() => consumer.kill());
    consumer.spawn();
    await until("it answers", async () => (await consumer.readiness()) === 503);
    const description = (await request(`${consumer.url}/openapi.json`)).json;
    const validate = validator(description);
    const page = await request(`${consumer.url}/messages`);
    assert.equal(page.status, 503);
    validate({ $ref: "#/components/schemas/Error" }, page.json);
    validate(description.components.headers.RetryAfter.schema, Number(page.headers["retry-after"]));
    const socket = openSocket(t, consumer.ws);
    await socket.takes("status");
    validate({ $ref: "#/components/schemas/Event" }, socket.frames[0]);
    assert.equal(socket.frames[0].cursor, undefined);
  });
});
