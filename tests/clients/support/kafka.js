// Topics and records in the Kafka of the tests.

import { randomBytes } from "node:crypto";
import { after } from "node:test";

import kafkajs from "kafkajs";

import { kafkaAddress } from "./environment.js";
import { pause, until } from "./wait.js";

const { Kafka, Partitioners, logLevel } = kafkajs;

let opened;

function clients() {
  opened ??= (async () => {
    const kafka = new Kafka({ brokers: [kafkaAddress], clientId: "herald-clients", logLevel: logLevel.NOTHING });
    const admin = kafka.admin();
    const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
    await Promise.all([admin.connect(), producer.connect()]);
    return { admin, producer };
  })();
  return opened;
}

after(async () => {
  if (opened) {
    const { admin, producer } = await opened;
    await Promise.all([admin.disconnect(), producer.disconnect()]);
  }
});

/** A name that no other test has. */
export function randomName(prefix = "clients") {
  return `${prefix}-${randomBytes(6).toString("hex")}`;
}

/** Makes a topic with a name of its own. */
export async function newTopic(partitions = 1) {
  const topic = randomName();
  const { admin } = await clients();
  const configEntries = [{ name: "retention.ms", value: "-1" }]; // a test may write records of any age
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions, replicationFactor: 1, configEntries }], waitForLeaders: false });
  await until(`topic ${topic} has leaders`, async () => {
    const metadata = await admin.fetchTopicMetadata({ topics: [topic] }).catch(() => undefined);
    return metadata?.topics[0].partitions.every(({ leader }) => leader >= 0);
  });
  return topic;
}

/** Writes records: texts, bytes or null, or objects of value, key, headers, partition and timestamp. */
export async function publish(topic, records) {
  const { producer } = await clients();
  const messages = records.map((record) => {
    const isObject = record !== null && typeof record === "object" && !Buffer.isBuffer(record);
    return { partition: 0, ...(isObject ? record : { value: record }) };
  });
  for (const batch of batches(messages)) {
    await producer.send({ topic, acks: -1, messages: batch });
  }
}

/** Kafka takes at most 1 MiB at once. */
function* batches(messages) {
  let [batch, bytes] = [[], 0];
  for (const message of messages) {
    const size = 100 + (message.value?.length ?? 0);
    if (batch.length === 1000 || (batch.length > 0 && bytes + size > 500_000)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(message);
    bytes += size;
  }
  yield batch;
}

/** `count` texts that contain their order: `<prefix> 0`, `<prefix> 1`, … */
export function texts(prefix, count) {
  return Array.from({ length: count }, (_, number) => `${prefix} ${number}`);
}

/**
 * Writes one record after the other, to the partitions in turn, until it is stopped. `sent` holds the texts of each partition.
 */
export function keepPublishing(topic, partitions) {
  const sent = Array.from({ length: partitions }, () => []);
  let stopped = false;
  const loop = (async () => {
    for (let number = 0; !stopped; number += 1) {
      const partition = number % partitions;
      const value = `record ${number}`;
      await publish(topic, [{ partition, value }]);
      sent[partition].push(value);
      await pause(5);
    }
  })();
  return {
    sent,
    count: () => sent.reduce((sum, of) => sum + of.length, 0),
    /** Resolves with what was sent, once all of it is written. */
    async stop() {
      stopped = true;
      await loop;
      return sent;
    },
  };
}
