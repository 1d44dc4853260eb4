// One of Herald's programs as a process of its own, started, ended and killed by a test.

import { spawn } from "node:child_process";
import { once } from "node:events";

import { binary } from "./environment.js";
import { request } from "./http.js";
import { until } from "./wait.js";

export class Service {
  /** `args` without the address for operators. */
  constructor(name, args, adminPort) {
    this.name = name;
    this.args = [...args, "--admin-listen", `127.0.0.1:${adminPort}`];
    this.admin = `http://127.0.0.1:${adminPort}`;
    this.log = "";
  }

  /** Starts it, or starts it again, on the same ports. */
  async start() {
    this.spawn();
    await this.ready();
  }

  spawn() {
    this.process = run(this.name, this.args);
    this.exited = once(this.process, "exit");
    this.process.stdout.on("data", (text) => (this.log += text));
    this.process.stderr.on("data", (text) => (this.log += text));
  }

  async ready() {
    await until(
      () => `the ${this.name} is ready; it says:\n${this.said()}`,
      async () => {
        if (this.process.exitCode !== null) {
          throw new Error(`the ${this.name} ended with ${this.process.exitCode}:\n${this.said()}`);
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
