// The content of a record is delivered unchanged by every transport, and cannot alter the framing around it.

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { hostile } from "./fixtures/hostile.js";
import { startConsumer } from "./support/consumer.js";
import { readThroughEveryTransport } from "./support/transports.js";
import { without } from "./support/environment.js";
import { newTopic, publish } from "./support/kafka.js";

/** What server-sent events make of a text. */
const withLineFeeds = (text) => text.replace(/\r\n|\r/g, "\n");

const notUtf8 = Buffer.from([0x66, 0x6f, 0xff, 0xfe, 0x00]);

describe("payloads", { skip: without("kafka"), concurrency: true }, () => {
  test("a hostile text arrives as it is", async (t) => {
    const rules = Object.entries(hostile);
    const topic = await newTopic();
    await publish(topic, rules.map(([, value]) => value));
    const consumer = await startConsumer(t, topic);
    const transports = await readThroughEveryTransport(t, consumer, rules.length);
    for (const [transport, { messages, gaps }] of Object.entries(transports)) {
      await t.test(transport, async (t) => {
        assert.deepEqual(gaps, []);
        for (const [at, [rule, text]] of rules.entries()) {
          await t.test(rule, () => {
            const expected = transport === "server-sent events, text" ? withLineFeeds(text) : text;
            // Not assert.equal, which would print all 400,000 characters.
            assert.ok(messages[at].data === expected, JSON.stringify(messages[at].data.slice(0, 200)));
          });
        }
        assert.equal(messages.length, rules.length);
      });
    }
  });

  test("a value that is not UTF-8 or too large is a gap of one offset, and null is no text", async (t) => {
    const topic = await newTopic();
    await publish(topic, ["first", notUtf8, null, "x".repeat(1001), "y".repeat(1000), "last"]);
    const consumer = await startConsumer(t, topic, ["--max-message-bytes", "1000"]);
    const transports = await readThroughEveryTransport(t, consumer, 6);
    for (const [transport, { messages, gaps }] of Object.entries(transports)) {
      await t.test(transport, () => {
        const nothing = transport.includes("Socket.IO") || transport.endsWith("text") ? "" : null;
        assert.deepEqual(messages.map(({ data }) => data), ["first", nothing, "y".repeat(1000), "last"]);
        assert.deepEqual(
          gaps.map(({ reason, ranges }) => ({ reason, ranges })),
          [
            { reason: "not-utf8", ranges: [{ partition: 0, from: 1, to: 2 }] },
            { reason: "too-large", ranges: [{ partition: 0, from: 3, to: 4 }] },
          ],
        );
      });
    }
  });

  test("a value that is not UTF-8 is delivered as base64 to clients that request it", async (t) => {
    const topic = await newTopic();
    await publish(topic, ["first", notUtf8, "last"]);
    const consumer = await startConsumer(t, topic);
    const transports = await readThroughEveryTransport(t, consumer, 3, { binary: "base64" });
    for (const [transport, { messages, gaps }] of Object.entries(transports)) {
      await t.test(transport, () => {
        assert.deepEqual(messages.map(({ data }) => data), ["first", notUtf8.toString("base64"), "last"]);
        assert.deepEqual(gaps, []);
        if (["server-sent events, json", "WebSocket", "history"].includes(transport)) {
          assert.deepEqual(messages.map(({ encoding }) => encoding), [undefined, "base64", undefined]);
        }
      });
    }
  });

  test("keys and headers mark what is text and what is not", async (t) => {
    const topic = await newTopic();
    await publish(topic, [
      { value: "no key" },
      { value: "text", key: "a\nkey: \"x\"", headers: { one: "1", "ümlaut\r\n": "ü\r\nid: forged", empty: "" } },
      { value: "bytes", key: notUtf8, headers: { bytes: notUtf8, repeated: ["first", notUtf8, "third"] } },
    ]);
    const consumer = await startConsumer(t, topic);
    const base64 = notUtf8.toString("base64");
    const transports = await readThroughEveryTransport(t, consumer, 3);
    for (const transport of ["server-sent events, json", "WebSocket", "history"]) {
      await t.test(transport, () => {
        assert.deepEqual(
          transports[transport].messages.map(({ key, headers }) => ({ key, headers })),
          [
            { key: null, headers: {} },
            { key: "a\nkey: \"x\"", headers: { one: "1", "ümlaut\r\n": "ü\r\nid: forged", empty: "" } },
            { key: { base64 }, headers: { bytes: { base64 }, repeated: ["first", { base64 }, "third"] } },
          ],
        );
      });
    }
  });

  test("the cursor of an event is its id, and is the same on every transport", async (t) => {
    const topic = await newTopic();
    await publish(topic, ["first", "second", "third"]);
    const consumer = await startConsumer(t, topic);
    const transports = await readThroughEveryTransport(t, consumer, 3);
    const cursors = Object.values(transports).map(({ messages }) => messages.map(({ cursor, id }) => cursor ?? id));
    for (const of of cursors) {
      assert.deepEqual(of, cursors[0]);
    }
    const json = transports["server-sent events, json"].messages;
    assert.ok(json.every(({ cursor, id }) => cursor === id));
  });
});
