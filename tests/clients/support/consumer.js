import { kafkaAddress } from "./environment.js";
import { freePort } from "./ports.js";
import { Service } from "./service.js";

/** Starts a consumer of these topics and waits until it is ready. It ends with the test `t`. */
export async function startConsumer(t, topics, options = []) {
  const consumer = new Consumer([topics].flat(), options, await freePort(), await freePort());
  t.after(() => consumer.kill());
  await consumer.start();
  return consumer;
}

export class Consumer extends Service {
  constructor(topics, options, port, adminPort) {
    const kafka = options.includes("--kafka-bootstrap-servers") ? [] : ["--kafka-bootstrap-servers", kafkaAddress];
    super("consumer", ["--listen", `127.0.0.1:${port}`, "--kafka-topic", topics.join(","), ...kafka, ...options], adminPort);
    this.port = port;
    this.url = `http://127.0.0.1:${port}`;
    this.ws = `ws://127.0.0.1:${port}/ws`;
  }
}
