// A Kafka of our own, for what cannot be done to one that other tests use.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import os from "node:os";
import path from "node:path";

import { kafkaJars } from "./environment.js";
import { freePort } from "./ports.js";
import { until } from "./wait.js";

/** Starts Kafka on this port of 127.0.0.1 and waits until it accepts connections. It ends, with its data, with the test. */
export async function startBroker(t, port) {
  const folder = await mkdtemp(path.join(os.tmpdir(), "herald-kafka-"));
  const controller = await freePort();
  const properties = path.join(folder, "server.properties");
  await writeFile(
    properties,
    `process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:${controller}
listeners=PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controller}
advertised.listeners=PLAINTEXT://127.0.0.1:${port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=${path.join(folder, "data")}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
`,
  );
  const java = (...args) =>
    spawn("java", ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", path.join(kafkaJars, "*"), ...args], { stdio: "ignore" });
  const [formatted] = await once(java("kafka.tools.StorageTool", "format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", properties), "exit");
  if (formatted !== 0) {
    throw new Error(`cannot format the storage of Kafka in ${folder}`);
  }
  const broker = java("kafka.Kafka", properties);
  const ended = once(broker, "exit");
  t.after(async () => {
    broker.kill("SIGKILL");
    await ended;
    await rm(folder, { recursive: true, force: true });
  });
  await until("Kafka accepts connections", () => accepts(port), 60_000);
}

function accepts(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("connect", () => (socket.destroy(), resolve(true)));
    socket.on("error", () => resolve(false));
  });
}
