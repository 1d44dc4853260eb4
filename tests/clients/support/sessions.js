// The gateway and the projector, which together turn frames into documents.

import { kafkaAddress } from "./environment.js";
import { newTopic } from "./kafka.js";
import { freePort } from "./ports.js";
import { Service } from "./service.js";

/**
 * Starts a projector and a gateway with a new topic and a new database, that of a function of databases.js, and waits until both
 * are ready. They end with the test.
 */
export async function startSessions(t, newDatabase) {
  const [topic, database, port] = [await newTopic(2), await newDatabase(), await freePort()];
  const kafka = ["--kafka-bootstrap-servers", kafkaAddress, "--events-topic", topic];
  const projector = new Service("projector", [...kafka, "--group-prefix", topic, ...database.written], await freePort());
  const gateway = new Service("gateway", [...kafka, "--listen", `127.0.0.1:${port}`, ...database.read], await freePort());
  t.after(async () => {
    await Promise.all([gateway.kill(), projector.kill()]);
    await database.remove();
  });
  await Promise.all([gateway.start(), projector.start()]);
  return { topic, database, gateway, projector, url: `http://127.0.0.1:${port}` };
}
