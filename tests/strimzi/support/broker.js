// A Kafka configured as in k8s/strimzi/kafka.yaml, TLS in both directions, and nothing allowed that no ACL allows; with a second
// listener as in k8s/strimzi-scram, which demands a password instead of a certificate.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";

import kafkajs from "kafkajs";

import { kafkaJars } from "../../clients/support/environment.js";
import { freePort } from "../../clients/support/ports.js";
import { until } from "../../clients/support/wait.js";
import { authority, sign } from "./certificates.js";

/** The name in the brokers' own certificate; it may do everything. */
const BROKER = "my-cluster-kafka";

const QUIET = { logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 3 } };

/** Starts it and waits until it accepts connections. `logins` have a password each. `stop` ends it and deletes its data. */
export async function startSecuredBroker(logins = {}) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "herald-strimzi-"));
  const [clusterCa, clientsCa] = [authority(folder, "cluster-ca"), authority(folder, "clients-ca")];
  const own = sign(clusterCa, BROKER, ["IP:127.0.0.1"]);
  const [keystore, truststore] = [path.join(folder, "keystore.pem"), path.join(folder, "truststore.pem")];
  writeFileSync(keystore, text(own.key) + text(own.certificate));
  writeFileSync(truststore, text(clusterCa.certificate) + text(clientsCa.certificate));

  const [port, scram, controller] = [await freePort(), await freePort(), await freePort()];
  const properties = path.join(folder, "server.properties");
  writeFileSync(
    properties,
    `process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:${controller}
listeners=TLS://127.0.0.1:${port},SCRAM://127.0.0.1:${scram},CONTROLLER://127.0.0.1:${controller}
advertised.listeners=TLS://127.0.0.1:${port},SCRAM://127.0.0.1:${scram}
listener.security.protocol.map=TLS:SSL,SCRAM:SASL_SSL,CONTROLLER:SSL
inter.broker.listener.name=TLS
controller.listener.names=CONTROLLER
ssl.client.auth=required
listener.name.scram.ssl.client.auth=none
listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location=${keystore}
ssl.truststore.type=PEM
ssl.truststore.location=${truststore}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:CN=${BROKER}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
log.dirs=${path.join(folder, "data")}
`,
  );
  const passwords = Object.entries(logins).flatMap(([name, password]) => ["--add-scram", `SCRAM-SHA-512=[name=${name},password=${password}]`]);
  const format = ["format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", properties, ...passwords];
  const [formatted] = await once(java("kafka.tools.StorageTool", ...format), "exit");
  if (formatted !== 0) {
    throw new Error(`cannot format the storage of Kafka in ${folder}`);
  }
  const process = java("kafka.Kafka", properties);
  const ended = once(process, "exit");
  await until("Kafka accepts connections", async () => (await accepts(port)) && accepts(scram), 120_000);

  const address = `127.0.0.1:${port}`;
  const ca = text(clusterCa.certificate);
  return {
    folder,
    address,
    clusterCa,
    clientsCa,
    /** The port of the listener that demands a password. */
    scram,
    /** The certificate of a user, as Strimzi would put it into the user's Secret. */
    user: (name) => sign(clientsCa, name),
    /** A client of kafkajs that shows this certificate. */
    client: ({ key, certificate } = own) =>
      new kafkajs.Kafka({
        brokers: [address],
        ssl: { ca, key: text(key), cert: text(certificate) },
        ...QUIET,
      }),
    /** A client of kafkajs that logs in with a password. */
    login: (username) =>
      new kafkajs.Kafka({
        brokers: [`127.0.0.1:${scram}`],
        ssl: { ca },
        sasl: { mechanism: "scram-sha-512", username, password: logins[username] },
        ...QUIET,
      }),
    async stop() {
      process.kill("SIGKILL");
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function text(file) {
  return readFileSync(file, "utf8");
}

function java(...args) {
  return spawn("java", ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", path.join(kafkaJars, "*"), ...args], { stdio: "ignore" });
}

function accepts(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("connect", () => (socket.destroy(), resolve(true)));
    socket.on("error", () => resolve(false));
  });
}
