/** Herald's programs as processes of a test. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { until } from "./browser.js";

/** The folder of the programs. */
export const folder = process.env.HERALD_BIN_DIR ?? fileURLToPath(new URL("../../target/debug", import.meta.url));

/** Why there are no programs to be tested, or undefined. */
export const absent = ["consumer", "producer"].every((name) => existsSync(join(folder, name)))
  ? undefined
  : `there are no programs in ${folder} (cargo build, or HERALD_BIN_DIR)`;

const endings = new WeakMap();

/** Does this when the test ends, in the opposite order of what was begun; node's own `after` keeps the order. */
export function atEnd(context, act) {
  if (!endings.has(context)) {
    endings.set(context, []);
    context.after(async () => {
      for (const ending of endings.get(context).toReversed()) await ending();
    });
  }
  endings.get(context).push(act);
}

/** A consumer that is ready. It ends with the test. */
export async function startConsumer(context, { topics, kafka, header = "Hello World Dev!", options = [] }) {
  const [port, admin] = [await freePort(), await freePort()];
  const consumer = {
    url: `http://127.0.0.1:${port}/`,
    async start() {
      const args = ["--listen", `127.0.0.1:${port}`, "--admin-listen", `127.0.0.1:${admin}`, "--kafka-bootstrap-servers", kafka];
      this.process = run("consumer", [...args, "--kafka-topic", topics.join(), "--custom-header", header, ...options]);
      await until("the consumer is ready", () => this.ready(), 40_000);
    },
    async ready() {
      if (this.process.exitCode !== null) throw new Error(`the consumer has ended:\n${this.process.log}`);
      const answer = await fetch(`http://127.0.0.1:${admin}/readyz`).catch(() => null);
      return answer?.status === 200;
    },
    port,
    kill() {
      return kill(this.process);
    },
    /** SIGTERM: it drains. */
    terminate() {
      this.process.kill("SIGTERM");
    },
    /** The lines of its metrics that begin so. */
    async metrics(begin) {
      const answer = await fetch(`http://127.0.0.1:${admin}/metrics`);
      return (await answer.text()).split("\n").filter((line) => line.startsWith(begin));
    },
  };
  atEnd(context, () => consumer.kill());
  await consumer.start();
  return consumer;
}

/** A producer that sends several messages a second. It ends with the test. */
export async function startProducer(context, { topic, kafka }) {
  const pace = ["--interval-min", "100ms", "--interval-max", "300ms"];
  const child = run("producer", ["--kafka-bootstrap-servers", kafka, "--kafka-topic", topic, "--admin-listen", "127.0.0.1:0", ...pace]);
  atEnd(context, () => kill(child));
}

/** A port for a server that may be away for a while: no client is given one below 32768 by chance. */
export async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const free = await new Promise((resolve) => {
      const server = createServer().once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/** Nothing of our own environment may configure it. */
export function run(name, args, environment = {}) {
  const child = spawn(join(folder, name), args, { env: { PATH: process.env.PATH, ...environment }, stdio: ["ignore", "pipe", "pipe"] });
  process.once("exit", () => child.kill("SIGKILL")); // when the test did not come to its end
  child.log = "";
  for (const pipe of [child.stdout, child.stderr]) pipe.on("data", (data) => (child.log = (child.log + data).slice(-10_000)));
  return child;
}

export function kill(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  return ended;
}
