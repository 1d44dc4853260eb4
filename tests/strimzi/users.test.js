// What the users of k8s/strimzi may do, and what they may not, against a Kafka with TLS and ACLs. There is no operator here:
// the ACLs are those that it would set.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { WebSocket } from "ws";

import { without } from "../clients/support/environment.js";
import { until } from "../clients/support/wait.js";
import { ended, ORIGINAL, send } from "../page/session.js";
import { startSecuredBroker } from "./support/broker.js";
import { isRefusal, joined } from "./support/kafka.js";
import { acls, options, topics, users, withoutHelm } from "./support/manifests.js";
import { startService } from "./support/services.js";

const TOPICS = { "herald-default": "my-topic", "herald-dev": "dev-topic", "herald-prod": "prod-topic" };

describe("the users of k8s/strimzi", { skip: without("jars") || withoutHelm() }, () => {
  let broker, admin;
  const certificates = {};

  before(async () => {
    broker = await startSecuredBroker();
    admin = broker.client().admin();
    await admin.connect();
    const declared = ["default", "dev", "prod"].flatMap(topics);
    await admin.createTopics({ topics: declared.map((topic) => ({ topic })) });
    await admin.createAcls({ acl: users.flatMap(acls) });
    for (const { metadata } of users) {
      certificates[metadata.name] = broker.user(metadata.name);
    }
  });

  after(async () => {
    await admin?.disconnect();
    await broker?.stop();
  });

  test("there is one for each environment", () => {
    assert.deepEqual(
      users.map(({ metadata }) => metadata.name),
      Object.keys(TOPICS),
    );
  });

  for (const [user, topic] of Object.entries(TOPICS)) {
    const environment = user.replace("herald-", "");

    test(`${user}: messages flow through the release of ${environment}, by the chart's values`, async (t) => {
      const release = options(environment);
      assert.equal(release.KAFKA_TOPIC, topic);
      await startService(t, "producer", broker, release, certificates[user]);
      const consumer = await startService(t, "consumer", broker, release, certificates[user]);
      await until(() => `the consumer is ready; it says:\n${consumer.said}`, async () => (await consumer.readiness()).status === 200, 40_000);
      await until(
        () => `a message has come; the consumer says:\n${consumer.said}`,
        async () => (await (await fetch(`${consumer.url}/messages`)).json()).messages.length > 0,
      );
      assert.doesNotMatch(consumer.said, /"level":"(WARN|ERROR)"/);
    });
  }

  for (const user of Object.keys(TOPICS)) {
    const environment = user.replace("herald-", "");

    test(`${user}: sessions and malformed records flow through the release of ${environment}`, async (t) => {
      const folder = mkdtempSync(join(tmpdir(), "herald-sessions-"));
      t.after(() => rmSync(folder, { recursive: true }));
      const release = { ...options(environment), DATABASE_URL: `sqlite://${folder}/sessions.db`, CREATE_DEAD_LETTER_TOPIC: "false" };
      const projector = await startService(t, "projector", broker, release, certificates[user]);
      const gateway = await startService(t, "gateway", broker, release, certificates[user]);
      await until(() => `the projector is ready; it says:\n${projector.said}`, async () => (await projector.readiness()).status === 200, 40_000);
      await until(() => `the gateway is ready; it says:\n${gateway.said}`, async () => (await gateway.readiness()).status === 200, 40_000);
      await send(WebSocket, gateway.url, ORIGINAL.id, ORIGINAL.frames);
      assert.deepEqual(await ended(gateway.url, ORIGINAL.id), ORIGINAL.document);

      const producer = broker.client().producer();
      await producer.connect();
      t.after(() => producer.disconnect());
      await producer.send({ topic: release.EVENTS_TOPIC, messages: [{ key: '"a"', value: "not JSON" }] });
      const dead = async () => (await admin.fetchTopicOffsets(`${release.EVENTS_TOPIC}.dlq`)).some(({ offset }) => offset !== "0");
      await until(() => `the dead letter; the projector says:\n${projector.said}`, dead);
    });

    test(`${user}: foods are counted through the release of ${environment}`, async (t) => {
      const folder = mkdtempSync(join(tmpdir(), "herald-counts-"));
      t.after(() => rmSync(folder, { recursive: true }));
      const release = { ...options(environment), DATABASE_URL: `sqlite://${folder}/counts.db`, CREATE_DEAD_LETTER_TOPIC: "false" };
      const feed = { ...release, FEED: "foods", KAFKA_TOPIC: release.COUNTS_TOPIC, CREATE_TOPIC: "false" };
      await startService(t, "producer", broker, feed, certificates[user]);
      const projector = await startService(t, "projector", broker, release, certificates[user]);
      const gateway = await startService(t, "gateway", broker, release, certificates[user]);
      await until(
        () => `a food is counted; the projector says:\n${projector.said}\nthe gateway says:\n${gateway.said}`,
        async () => {
          const answer = await fetch(`${gateway.url}/aggregated`).catch(() => ({ ok: false }));
          return answer.ok && (await answer.json()).length > 0;
        },
        40_000,
      );
    });

    test(`${user}: likes become results through the release of ${environment}`, async (t) => {
      const folder = mkdtempSync(join(tmpdir(), "herald-likes-"));
      t.after(() => rmSync(folder, { recursive: true }));
      const release = { ...options(environment), DATABASE_URL: `sqlite://${folder}/likes.db`, CREATE_DEAD_LETTER_TOPIC: "false" };
      const results = release.LIKES_1_MIN_AGGREGATION_TOPIC_NAME;
      // The same topic, after seconds instead of a minute.
      const soon = { ...release, WINDOWS: `5s=${results}`, WINDOW_GRACE: "1s", INTERIM_INTERVAL: "1s" };
      const projector = await startService(t, "projector", broker, soon, certificates[user]);
      const gateway = await startService(t, "gateway", broker, soon, certificates[user]);
      const consumer = await startService(t, "consumer", broker, release, certificates[user]);
      await until(() => `the consumer is ready; it says:\n${consumer.said}`, async () => (await consumer.readiness()).status === 200, 40_000);
      const like = async () => (await fetch(`${gateway.url}/videos/a/likes`, { method: "POST" }).catch(() => ({}))).status === 200;
      await until(() => `the gateway takes a like; it says:\n${gateway.said}`, like, 40_000);
      await until(() => `the projector is ready; it says:\n${projector.said}`, async () => (await projector.readiness()).status === 200, 40_000);
      const ends = async (topic) => (await admin.fetchTopicOffsets(topic)).some(({ offset }) => offset !== "0");
      for (const topic of [release.PARTITIONED_LIKES_TOPIC, `${results}.live`, results]) {
        // Again and again: the window of the first like may be closed before interim counts of it are due.
        const arrived = async () => (await like()) && (await ends(topic));
        await until(() => `a record in ${topic}; the projector says:\n${projector.said}`, arrived, 40_000);
      }
      const read = async () => (await (await fetch(`${consumer.url}/messages?topic=${results}`)).json()).messages.at(-1);
      const { data } = await until(() => `the consumer reads a result; it says:\n${consumer.said}`, read);
      const { type, start, count } = JSON.parse(data);
      const opened = await fetch(`${gateway.url}/windows/${type}/${start}/a/messages`);
      const text = await opened.text();
      assert.equal(opened.status, 200, text);
      assert.equal(JSON.parse(text).messages.length, count);
      assert.doesNotMatch(projector.said + gateway.said + consumer.said, /does not authorize|authorization failed/i);
    });
  }

  test("with the user of another environment, the services name the topic and are not ready", async (t) => {
    const release = { ...options("prod"), CREATE_TOPIC: "false" };
    const expected = { producer: /"WARN".*prod-topic/, consumer: /prod-topic.*does not authorize this server/ };
    for (const [name, complaint] of Object.entries(expected)) {
      const service = await startService(t, name, broker, release, certificates["herald-dev"]);
      await until(() => `${complaint}; the ${name} says:\n${service.said}`, () => complaint.test(service.said), 40_000);
      assert.equal((await service.readiness()).status, 503);
    }
  });

  test("without a client certificate, the services log that TLS was rejected", async (t) => {
    const release = options("prod");
    const properties = release.KAFKA_PROPERTIES.split("\n").filter((line) => !/ssl\.(certificate|key)\./.test(line));
    const unknown = { ...release, KAFKA_PROPERTIES: properties.join("\n") };
    const consumer = await startService(t, "consumer", broker, unknown, certificates["herald-prod"]);
    await until(() => `a refusal; it says:\n${consumer.said}`, () => /no connection to kafka.*alert bad certificate/.test(consumer.said));
    assert.equal((await consumer.readiness()).status, 503);
  });

  test("a user may not make a topic, or read or write another environment's", async (t) => {
    const client = broker.client(certificates["herald-prod"]);
    const [own, producer] = [client.admin(), client.producer({ allowAutoTopicCreation: false })];
    await Promise.all([own.connect(), producer.connect()]);
    t.after(() => Promise.all([own.disconnect(), producer.disconnect()]));

    await assert.rejects(own.createTopics({ topics: [{ topic: "another" }] }), isRefusal);
    await assert.rejects(own.deleteTopics({ topics: ["prod-topic"] }), isRefusal);
    await assert.rejects(own.fetchTopicOffsets("dev-topic"), isRefusal);
    for (const topic of ["dev-topic", "dev.message", "dev.video_clicks_ingestion", "one_minute_aggregation_topic"]) {
      await assert.rejects(producer.send({ topic, messages: [{ value: "foreign" }] }), isRefusal);
    }
    await producer.send({ topic: "prod-topic", messages: [{ value: "its own" }] });
  });

  test("a user may not use another environment's groups or transactional ids", async (t) => {
    const client = broker.client(certificates["herald-prod"]);
    const join = async (groupId) => {
      const consumer = client.consumer({ groupId });
      await consumer.connect();
      t.after(() => consumer.disconnect());
      await consumer.subscribe({ topic: "prod.message" });
      return joined(consumer);
    };
    // Kafka creates the topic of the offsets with the first group.
    await until("its own group to be joined", () => join("herald-prod-windows").catch(() => false));
    for (const groupId of ["herald-windows", "herald-dev-windows"]) {
      await assert.rejects(join(groupId), isRefusal);
    }
    const begin = async (transactionalId) => {
      const producer = client.producer({ transactionalId, idempotent: true, maxInFlightRequests: 1 });
      await producer.connect();
      t.after(() => producer.disconnect());
      return producer.transaction();
    };
    const own = await until("its own transaction to begin", () => begin("herald-prod-windows-0").catch(() => false));
    await own.abort();
    for (const transactionalId of ["herald-windows-0", "herald-dev-windows-0"]) {
      // All that kafkajs says when the coordinator refuses the id.
      await assert.rejects(begin(transactionalId), /Failed to find group coordinator/);
    }
  });
});
