// Herald's programs with the options of a release, their paths and addresses turned into those of this machine.

import { spawn } from "node:child_process";
import { once } from "node:events";

import { binary } from "../../clients/support/environment.js";
import { freePort } from "../../clients/support/ports.js";

/** Where the chart mounts the Secrets, and the keys that Strimzi gives them. */
const [CA, CERTIFICATE, KEY] = ["/etc/kafka/ca/ca.crt", "/etc/kafka/user/user.crt", "/etc/kafka/user/user.key"];

/**
 * Starts `name` with the certificate of a user, or, by the password of `user.properties`, a file, at `user.address`. It ends with
 * the test. `said` is what it has logged, `url` the public address of a consumer or a gateway.
 */
export async function startService(t, name, broker, options, user) {
  const [port, admin] = [await freePort(), await freePort()];
  const properties = options.KAFKA_PROPERTIES.replace(CA, (user.ca ?? broker.clusterCa).certificate)
    .replace(CERTIFICATE, user.certificate)
    .replace(KEY, user.key);
  const child = spawn(binary(name), [], {
    env: {
      PATH: process.env.PATH,
      ...options,
      KAFKA_BOOTSTRAP_SERVERS: user.address ?? broker.address,
      KAFKA_PROPERTIES: properties,
      ...(user.properties && { KAFKA_PROPERTIES_FILE: user.properties }),
      ADMIN_LISTEN: `127.0.0.1:${admin}`,
      ...(["consumer", "gateway"].includes(name) && { LISTEN: `127.0.0.1:${port}` }),
      ...(name === "producer" && { INTERVAL_MAX: "1s" }),
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const service = { url: `http://127.0.0.1:${port}`, said: "" };
  child.stdout.on("data", (text) => (service.said += text));
  child.stderr.on("data", (text) => (service.said += text));
  const ended = once(child, "exit");
  t.after(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  /** The answer of its readiness: status and reason. */
  service.readiness = async () => {
    const answer = await fetch(`http://127.0.0.1:${admin}/readyz`).catch(() => undefined);
    return { status: answer?.status, reason: (await answer?.text()) ?? "" };
  };
  return service;
}
