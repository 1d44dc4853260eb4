// A Kafka that demands a password over TLS (SASL/SCRAM-SHA-512), with a user for each service, as in k8s/strimzi-scram: everything
// works, and each user may do nothing that its service does not. And what the services log when they cannot connect.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import kafkajs from "kafkajs";
import { WebSocket } from "ws";

import { without } from "../clients/support/environment.js";
import { until } from "../clients/support/wait.js";
import { ended, ORIGINAL, send } from "../page/session.js";
import { startSecuredBroker } from "./support/broker.js";
import { authority, sign } from "./support/certificates.js";
import { fetched, isRefusal, joined } from "./support/kafka.js";
import { acls, options, services, topics, withoutHelm } from "./support/manifests.js";
import { startService } from "./support/services.js";

const { AclOperationTypes, AclPermissionTypes, AclResourceTypes, ResourcePatternTypes } = kafkajs;

/** Groups that everyone may join, so that it is the topic which is refused. */
const ANYONE = {
  principal: "User:*",
  host: "*",
  resourceType: AclResourceTypes.GROUP,
  resourceName: "anyone-",
  resourcePatternType: ResourcePatternTypes.PREFIXED,
  operation: AclOperationTypes.READ,
  permissionType: AclPermissionTypes.ALLOW,
};

const SERVICES = ["producer", "gateway", "consumer", "projector"];
const login = (service) => `herald-prod-${service}`;
const password = (service) => `hush-${service}`;

describe("a Kafka that demands passwords", { skip: without("jars") || withoutHelm() }, () => {
  let broker, admin, release;

  before(async () => {
    broker = await startSecuredBroker(Object.fromEntries(SERVICES.map((service) => [login(service), password(service)])));
    admin = broker.client().admin();
    await admin.connect();
    await admin.createTopics({ topics: topics("prod").map((topic) => ({ topic })) });
    await admin.createAcls({ acl: services.flatMap(acls) });
    release = { ...options("prod", "k8s/strimzi-scram"), CREATE_DEAD_LETTER_TOPIC: "false", CREATE_TOPIC: "false" };
  });

  after(async () => {
    await admin?.disconnect();
    await broker?.stop();
  });

  /** How a service connects: the file that its pod mounts, and the address. */
  function user(service, { secret = password(service), host = "127.0.0.1", ...others } = {}) {
    const properties = join(broker.folder, `${service}-properties-${secret}`);
    const lines = ["security.protocol=sasl_ssl", "sasl.mechanism=SCRAM-SHA-512", `sasl.username=${login(service)}`, `sasl.password=${secret}`];
    writeFileSync(properties, lines.join("\n"));
    return { properties, address: `${host}:${broker.scram}`, ...others };
  }

  test("there is a user for each service", () => {
    assert.deepEqual(
      services.map(({ metadata }) => metadata.name),
      SERVICES.map(login),
    );
  });

  test("everything flows, each service with its own user", async (t) => {
    const results = release.LIKES_1_MIN_AGGREGATION_TOPIC_NAME;
    const own = {
      ...release,
      DATABASE_URL: `sqlite://${broker.folder}/results.db`,
      // The same topic, after seconds instead of a minute.
      WINDOWS: `5s=${results}`,
      WINDOW_GRACE: "1s",
      INTERIM_INTERVAL: "1s",
    };
    const feed = { ...own, FEED: "foods", KAFKA_TOPIC: own.COUNTS_TOPIC };
    const start = (service, options) => startService(t, service, broker, options, user(service));
    const [producer, foods, projector, gateway, consumer] = await Promise.all([
      start("producer", own),
      start("producer", feed),
      start("projector", own),
      start("gateway", own),
      start("consumer", own),
    ]);
    const said = () => [producer, foods, projector, gateway, consumer].map(({ said }) => said).join("\n");
    for (const service of [projector, gateway, consumer]) {
      await until(() => `all are ready; they say:\n${said()}`, async () => (await service.readiness()).status === 200, 60_000);
    }
    const json = async (url) => (await fetch(url)).json();
    const like = async () => (await fetch(`${gateway.url}/videos/a/likes`, { method: "POST" })).status === 200;
    const result = async () => (await like()) && (await json(`${consumer.url}/messages?topic=${results}`)).messages.at(-1);
    const live = async () => (await like()) && (await json(`${consumer.url}/messages?topic=${results}.live`)).messages.length > 0;
    await send(WebSocket, gateway.url, ORIGINAL.id, ORIGINAL.frames);
    assert.deepEqual(await ended(gateway.url, ORIGINAL.id), ORIGINAL.document);
    await until(() => `a broadcast; they say:\n${said()}`, async () => (await json(`${consumer.url}/messages`)).messages.length > 0);
    await until(() => `a food; they say:\n${said()}`, async () => (await json(`${gateway.url}/aggregated`)).length > 0);
    await until(() => `interim counts; they say:\n${said()}`, live, 20_000);
    const { type, start: begin, count } = JSON.parse((await until(() => `a result; they say:\n${said()}`, result, 20_000)).data);
    const { messages } = await json(`${gateway.url}/windows/${type}/${begin}/a/messages`);
    assert.equal(messages.length, count);

    const foreign = broker.client().producer();
    await foreign.connect();
    t.after(() => foreign.disconnect());
    for (const topic of [own.EVENTS_TOPIC, own.COUNTS_TOPIC, own.LIKES_TOPIC]) {
      await foreign.send({ topic, messages: [{ key: '"a"', value: "" }] });
      const dead = async () => (await admin.fetchTopicOffsets(`${topic}.dlq`)).some(({ offset }) => offset !== "0");
      await until(() => `a dead letter of ${topic}; they say:\n${said()}`, dead);
    }
    assert.doesNotMatch(said(), /does not authorize|authorization failed|hush/i);
  });

  test("no user may do what only others need", async (t) => {
    // Topics that it may not write to, or not read from; one that it may look up; and a group that it may not join.
    const forbidden = {
      producer: {
        write: ["prod.websocket.events", "prod.video_clicks_ingestion"],
        read: ["prod-topic", "prod.message"],
        join: ["herald-prod-windows", "prod-topic"],
      },
      gateway: {
        write: ["prod-topic", "prod.message", "prod.one_minute_aggregation_topic"],
        read: ["prod.websocket.events"],
        join: ["herald-prod-counts", "prod.websocket.events"],
      },
      consumer: {
        write: ["prod-topic", "prod.one_minute_aggregation_topic"],
        read: ["prod.websocket.events"],
        join: ["herald-prod-sessions", "prod-topic"],
      },
      projector: {
        write: ["prod-topic", "prod.websocket.events", "prod.message"],
        read: ["prod-topic", "prod.websocket.events.dlq"],
        join: ["herald-windows", "prod.websocket.events"],
      },
    };
    await admin.createAcls({ acl: [ANYONE] });
    const check = async ([service, { write, read, join }]) => {
      const client = broker.login(login(service));
      const [own, producer] = [client.admin(), client.producer({ allowAutoTopicCreation: false })];
      await Promise.all([own.connect(), producer.connect()]);
      t.after(() => Promise.all([own.disconnect(), producer.disconnect()]));
      const consumer = async (groupId, topic) => {
        const consumer = client.consumer({ groupId });
        await consumer.connect();
        t.after(() => consumer.disconnect());
        await consumer.subscribe({ topic });
        return consumer;
      };
      for (const topic of write) {
        await assert.rejects(producer.send({ topic, messages: [{ value: "foreign" }] }), isRefusal, `${service} writes to ${topic}`);
      }
      for (const topic of read) {
        await assert.rejects(async () => fetched(await consumer(`anyone-${service}-${topic}`, topic)), isRefusal, `${service} reads ${topic}`);
      }
      // The first is all that kafkajs says of a group that the user may not look up.
      const refused = (error) => /Failed to find group coordinator/.test(error.message) || isRefusal(error);
      await assert.rejects(async () => joined(await consumer(...join)), refused, `${service} joins ${join[0]}`);
      await assert.rejects(own.createTopics({ topics: [{ topic: "another" }] }), isRefusal);
      await assert.rejects(own.deleteTopics({ topics: ["prod-topic"] }), isRefusal);
    };
    await Promise.all(Object.entries(forbidden).map(check));
    // The same way to read is not refused where it is allowed.
    const allowed = broker.login(login("consumer")).consumer({ groupId: "anyone-allowed" });
    await allowed.connect();
    t.after(() => allowed.disconnect());
    await allowed.subscribe({ topic: "prod-topic" });
    await fetched(allowed);
  });

  test("the log says what is wrong with a connection, and what to do", async (t) => {
    const mutual = options("prod");
    const another = authority(broker.folder, "another-ca");
    const problems = [
      ...SERVICES.map((service) => [service, release, user(service, { secret: "hush-wrong" }), /rejects the user or the password; correct sasl.username and sasl.password/]),
      ["consumer", release, user("consumer", { ca: another }), /no CA in ssl.ca.location has signed the broker's certificate/],
      ["consumer", release, user("consumer", { host: "localhost" }), /the broker's certificate is not for \\"localhost\\"/],
      ["consumer", mutual, sign(broker.clientsCa, "expired", [], -1), /rejects our client certificate, because it has expired.*; renew the one in ssl.certificate.location/],
      ["consumer", mutual, sign(another, "foreign"), /demands a client certificate that a CA of its clients has signed/],
    ];
    const check = async ([name, options, user, complaint]) => {
      const own = { ...options, CREATE_TOPIC: "false", DATABASE_URL: `sqlite://${broker.folder}/none.db` };
      const service = await startService(t, name, broker, own, user);
      await until(() => `${complaint}; the ${name} says:\n${service.said}`, () => complaint.test(service.said), 40_000);
      assert.equal((await service.readiness()).status, 503);
      assert.doesNotMatch(service.said, /hush/);
    };
    await Promise.all(problems.map(check));
  });
});
