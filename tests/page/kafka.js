/** Kafka for these tests: topics and records in the one that is given, and one of our own, to be stopped and started. */
import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { openSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import kafkajs from "kafkajs";
import { atEnd, freePort } from "./consumer.js";
import { until } from "./browser.js";

export const address = process.env.HERALD_TEST_KAFKA;
export const jars = process.env.HERALD_KAFKA_JARS;

/** A topic of its own in this Kafka, and what can be done with it. */
export async function newTopic(context, { kafka = address, prefix = "dev", partitions = 1 } = {}) {
  const client = new kafkajs.Kafka({ brokers: [kafka], logLevel: kafkajs.logLevel.NOTHING });
  const admin = client.admin();
  const producer = client.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner });
  await Promise.all([admin.connect(), producer.connect()]);
  atEnd(context, () => Promise.all([admin.disconnect(), producer.disconnect()]));
  const topic = `${prefix}-${randomBytes(6).toString("hex")}`;
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions, replicationFactor: 1 }], waitForLeaders: true });
  return {
    name: topic,
    /** Texts, bytes or null, each to the next partition. */
    publish: (...values) => producer.send({ topic, acks: -1, messages: values.map((value, index) => ({ value, partition: index % partitions })) }),
    async deleteBefore(offset) {
      await admin.fetchTopicOffsets(topic); // or this client does not know the leader
      await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: String(offset) }] });
    },
  };
}

/** A Kafka of our own: one node, without automatic topics. It ends with the test. */
export async function startKafka(context) {
  const folder = await mkdtemp(join(tmpdir(), "herald-page-kafka-"));
  const [port, controller] = [await freePort(), await freePort()];
  const properties = join(folder, "server.properties");
  const settings = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.quorum.voters": `1@127.0.0.1:${controller}`,
    listeners: `PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controller}`,
    "advertised.listeners": `PLAINTEXT://127.0.0.1:${port}`,
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "log.dirs": join(folder, "data"),
    "offsets.topic.replication.factor": 1,
    "auto.create.topics.enable": false,
  };
  await writeFile(properties, Object.entries(settings).map(([key, value]) => `${key}=${value}\n`).join(""));
  const java = ["-Xmx512m", "-cp", join(jars, "*")];
  const format = ["kafka.tools.StorageTool", "format", "-t", randomBytes(16).toString("base64url"), "-c", properties];
  const { status, stderr } = spawnSync("java", [...java, ...format], { cwd: folder, encoding: "utf8" });
  if (status !== 0) throw new Error(`cannot format Kafka's folder: ${stderr}`);

  let broker = null;
  const log = openSync(join(folder, "log"), "a");
  const kafka = {
    address: `127.0.0.1:${port}`,
    async start() {
      broker = spawn("java", [...java, "kafka.Kafka", properties], { cwd: folder, stdio: ["ignore", log, log] });
      await until("Kafka has started", () => answers(port), 90_000);
    },
    async stop() {
      if (!broker) return;
      const ended = new Promise((resolve) => broker.once("exit", resolve));
      broker.kill("SIGKILL");
      await ended;
      broker = null;
    },
  };
  process.once("exit", () => broker?.kill("SIGKILL")); // when the test did not come to its end
  atEnd(context, async () => {
    await kafka.stop();
    await rm(folder, { recursive: true, force: true });
  });
  await kafka.start();
  return kafka;
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    const end = (answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", () => end(true));
    socket.once("error", () => end(false));
  });
}
