// A consumer as a process of its own, started, ended and killed by a test.

import { spawn } from "node:child_process";
import { once } from "node:events";

import { binary, kafkaAddress } from "./environment.js";
import { request } from "./http.js";
import { freePort } from "./ports.js";
import { until } from "./wait.js";

/** Starts a consumer of these topics and waits until it is ready. It ends with the test `t`. */
export async function startConsumer(t, topics, options = []) {
  const consumer = new Consumer([topics].flat(), options, await freePort(), await freePort());
  t.after(() => consumer.kill());
  await consumer.start();
  return consumer;
}

export class Consumer {
  constructor(topics, options, port, adminPort) {
    this.topics = topics;
    this.options = options;
    this.port = port;
    this.adminPort = adminPort;
    this.url = `http://127.0.0.1:${port}`;
    this.ws = `ws://127.0.0.1:${port}/ws`;
    this.admin = `http://127.0.0.1:${adminPort}`;
    this.log = "";
  }

  /** Starts it, or starts it again, on the same ports. */
  async start() {
    this.spawn();
    await this.ready();
  }

  spawn() {
    this.process = run("consumer", [
      ...["--listen", `127.0.0.1:${this.port}`, "--admin-listen", `127.0.0.1:${this.adminPort}`],
      ...["--kafka-topic", this.topics.join(",")],
      ...(this.options.includes("--kafka-bootstrap-servers") ? [] : ["--kafka-bootstrap-servers", kafkaAddress]),
      ...this.options,
    ]);
    this.exited = once(this.process, "exit");
    this.process.stdout.on("data", (text) => (this.log += text));
    this.process.stderr.on("data", (text) => (this.log += text));
  }

  async ready() {
    await until(
      () => `the consumer is ready; it says:\n${this.said()}`,
      async () => {
        if (this.process.exitCode !== null) {
          throw new Error(`the consumer ended with ${this.process.exitCode}:\n${this.said()}`);
        }
        return (await this.readiness()) === 200;
      },
      40_000,
    );
  }

  /** The end of its log. */
  said() {
    return this.log.split("\n").slice(-20).join("\n");
  }

  /** The status of its readiness; undefined while it does not answer. */
  async readiness() {
    const answer = await request(`${this.admin}/readyz`).catch(() => undefined);
    return answer?.status;
  }

  /** The value of a metric with exactly these labels, as they are written; 0 when there is none. */
  async metric(name, labels = "") {
    const { text } = await request(`${this.admin}/metrics`);
    const line = text.split("\n").find((line) => line.startsWith(`${name}${labels && `{${labels}}`} `));
    return line ? Number(line.split(" ").at(-1)) : 0;
  }

  /** SIGKILL. */
  async kill() {
    if (this.process && this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGKILL");
      await this.exited;
    }
  }

  /** SIGTERM, without waiting. */
  terminate() {
    this.process.kill("SIGTERM");
  }
}

/** Runs one of Herald's programs with nothing of our own environment that could configure it. */
export function run(name, args, environment = {}) {
  const { PATH } = process.env;
  const child = spawn(binary(name), args, { env: { PATH, TZ: "UTC", ...environment }, stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.setEncoding("utf8");
  child.stderr.setEncoding("utf8");
  return child;
}
