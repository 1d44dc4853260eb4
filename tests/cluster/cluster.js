/** Commands on the cluster that ./setup.sh creates, and their output. */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const top = fileURLToPath(new URL("../../", import.meta.url));
export const path = (...names) => join(top, ...names);

/** Nothing takes as long, also on a machine that builds everything for the first time. */
const LIMIT = 30 * 60_000;

/** Runs a command at the top of the repository; it must succeed, or with `fails` must not. */
export function run(program, args, { fails = false, input, env } = {}) {
  const begin = performance.now();
  const options = { cwd: top, encoding: "utf8", input, timeout: LIMIT, maxBuffer: 1 << 28, env: { ...process.env, ...env } };
  const { status, stdout, stderr, error } = spawnSync(program, args, options);
  const said = `${program} ${args.join(" ")} ended with ${status ?? error}:\n${stdout}\n${stderr}`;
  assert.equal(status !== 0, fails, said);
  return { stdout, stderr, seconds: (performance.now() - begin) / 1000 };
}

export const setup = (...names) => run("./setup.sh", names);
/** Runs ./setup.sh until it writes this line, then presses Ctrl-C; its exit code. */
export function interrupted(line) {
  const child = spawn("./setup.sh", { cwd: top, detached: true, stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.on("data", (data) => {
    const before = said.includes(line);
    said += data;
    // A terminal sends it to the whole group.
    if (!before && said.includes(line)) process.kill(-child.pid, "SIGINT");
  });
  return new Promise((resolve) => child.on("exit", (code, signal) => resolve(code ?? signal)));
}

export const kubectl = (...args) => run("kubectl", ["--context", "minikube", ...args]);
export const helm = (...args) => run("helm", ["--kube-context", "minikube", ...args]);
export const apply = (object) => run("kubectl", ["--context", "minikube", "create", "--filename", "-"], { input: JSON.stringify(object) });
export const json = (...args) => JSON.parse(kubectl(...args, "--output", "json").stdout);

/** The table that xtask and local read. */
export const environments = readFileSync(path("environments.toml"), "utf8")
  .split("[[environment]]")
  .slice(1)
  .map((text) => {
    const fields = [...text.matchAll(/^([\w.]+) = "?([^"\n]*)"?$/gm)].map(([, name, value]) => [name, value]);
    const environment = Object.fromEntries(fields);
    const url = (service) => `http://localhost:${environment[`local_ports.${service}`]}`;
    return { ...environment, url: url("consumer"), gateway: url("gateway") };
  });

/** The names of the services, from the table that xtask and local read. */
const services = [...readFileSync(path("services.toml"), "utf8").matchAll(/^name = "(.*)"$/gm)].map(([, name]) => name);

/** The revision of each environment's release. */
export function releases() {
  const all = JSON.parse(helm("list", "--all-namespaces", "--output", "json").stdout);
  const ours = all.filter((one) => environments.some(({ release, namespace }) => one.name === release && one.namespace === namespace));
  return Object.fromEntries(ours.map(({ name, revision }) => [name, Number(revision)]));
}

/** The pods of the services by namespace and name, with how often each was restarted. */
export function pods() {
  const { items } = json("get", "pods", "--all-namespaces", "--selector", `app.kubernetes.io/component in (${services.join(", ")})`);
  const ours = environments.map(({ namespace }) => namespace);
  const living = items.filter(({ metadata }) => ours.includes(metadata.namespace) && !metadata.deletionTimestamp);
  return Object.fromEntries(
    living.map(({ metadata, status }) => [`${metadata.namespace}/${metadata.name}`, status.containerStatuses?.[0].restartCount]),
  );
}
