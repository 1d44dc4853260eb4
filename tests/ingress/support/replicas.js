// What stands behind the proxy: replicas that run somewhere, or three processes of our own that read a topic of our own.

import { randomBytes } from "node:crypto";
import { spawn } from "node:child_process";
import { once } from "node:events";

import kafkajs from "kafkajs";

import { binary, kafkaAddress } from "../../clients/support/environment.js";
import { freePort } from "../../clients/support/ports.js";
import { until } from "../../clients/support/wait.js";

/** Addresses of replicas that run already, or of a Service before them. */
const given = process.env.HERALD_INGRESS_UPSTREAM?.split(",").filter(Boolean);

/** Whether the replicas are ours: then we may kill them, and nobody else writes to their topic. */
export const own = !given;

/** Why there is nothing behind a proxy, or false. In CI that is a failure. */
export function withoutReplicas() {
  const why = own && !kafkaAddress && "neither HERALD_INGRESS_UPSTREAM names replicas nor HERALD_TEST_KAFKA a Kafka";
  if (why && process.env.CI === "true") {
    throw new Error(why);
  }
  return why;
}

/** `addresses` for the proxy; `publish` writes texts, where the replicas are ours; `kill` ends one; `stop` ends all. */
export async function startReplicas() {
  if (given) {
    return { addresses: given, stop: async () => {} };
  }
  const kafka = new kafkajs.Kafka({ brokers: [kafkaAddress], logLevel: kafkajs.logLevel.NOTHING });
  const [admin, producer] = [kafka.admin(), kafka.producer()];
  await Promise.all([admin.connect(), producer.connect()]);
  const topic = `ingress-${randomBytes(6).toString("hex")}`;
  await admin.createTopics({ topics: [{ topic, replicationFactor: 1 }] });
  await admin.disconnect();
  const replicas = await Promise.all([1, 2, 3].map(() => startReplica(topic)));
  return {
    addresses: replicas.map(({ address }) => address),
    publish: (texts) => producer.send({ topic, messages: texts.map((value) => ({ value })) }),
    kill: (address) => replicas.find((replica) => replica.address === address).kill(),
    stop: () => Promise.all([producer.disconnect(), ...replicas.map((replica) => replica.kill())]),
  };
}

async function startReplica(topic) {
  const address = `127.0.0.1:${await freePort()}`;
  const admin = `127.0.0.1:${await freePort()}`;
  const options = ["--kafka-bootstrap-servers", kafkaAddress, "--kafka-topic", topic, "--listen", address, "--admin-listen", admin];
  const child = spawn(binary("consumer"), options, { env: { PATH: process.env.PATH }, stdio: "ignore" });
  const ended = once(child, "exit");
  await until(
    "a replica is ready",
    async () => (await fetch(`http://${admin}/readyz`).catch(() => undefined))?.status === 200,
    40_000,
  );
  return {
    address,
    async kill() {
      child.kill("SIGKILL");
      await ended;
    },
  };
}
