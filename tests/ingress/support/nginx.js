// nginx with a file of k8s/ingress, as an instance of our own.

import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { freePort } from "../../clients/support/ports.js";
import { until } from "../../clients/support/wait.js";

const settingsFolder = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../../k8s/ingress");
const documented = (name) => readFileSync(path.join(settingsFolder, name), "utf8");

/** Seconds of silence after which the documented settings end a stream. */
export const idleTimeout = Number(/proxy_read_timeout (\d+)s;/.exec(documented("nginx.conf"))[1]);

const program = ["nginx", "/usr/sbin/nginx"].find((name) => spawnSync(name, ["-v"], { stdio: "ignore" }).status === 0);

/** Why there is no nginx, or false. In CI its absence is a failure. */
export function withoutNginx() {
  const why = !program && "nginx is not installed";
  if (why && process.env.CI === "true") {
    throw new Error(why);
  }
  return why;
}

/**
 * Starts nginx in front of these addresses with the documented settings in `name`, of which `changes` replaces some (the text to
 * replace, and with what). It ends with the test.
 */
export async function startNginx(t, upstreams, changes = {}, name = "nginx.conf") {
  const folder = mkdtempSync(path.join(os.tmpdir(), "herald-nginx-"));
  chmodSync(folder, 0o755); // its workers have another user when we are root
  const [certificate, key, log] = ["tls.crt", "tls.key", "access.log"].map((name) => path.join(folder, name));
  const names = ["-subj", "/CN=herald.example", "-addext", "subjectAltName=DNS:herald.example,IP:127.0.0.1"];
  execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", ...names, "-keyout", key, "-out", certificate], {
    stdio: "ignore",
  });
  const port = await freePort();
  const settings = Object.entries({
    "listen 443 ssl http2;": `listen 127.0.0.1:${port} ssl http2;`,
    "/etc/nginx/herald/tls.crt": certificate,
    "/etc/nginx/herald/tls.key": key,
    "server 10.96.0.80:80;": upstreams.map((address) => `server ${address};`).join(" "),
    ...changes,
  }).reduce((text, change) => replace(name, text, change), documented(name));
  const file = path.join(folder, "nginx.conf");
  writeFileSync(
    file,
    `daemon off; pid ${folder}/pid; error_log ${folder}/error.log;
events { worker_connections 1024; }
http {
  ${["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder}/${name};`).join(" ")}
  log_format upstream '$remote_addr $upstream_addr';
  access_log ${log} upstream;
  ${settings}
}
`,
  );
  const nginx = spawn(program, ["-p", folder, "-e", `${folder}/error.log`, "-c", file], { stdio: "ignore" });
  const ended = once(nginx, "exit");
  t.after(async () => {
    nginx.kill("SIGTERM");
    await ended;
    rmSync(folder, { recursive: true, force: true });
  });
  await until(
    () => `nginx accepts connections:\n${readFileSync(`${folder}/error.log`, "utf8")}`,
    () => nginx.exitCode === null && accepts(port),
  );
  return {
    url: `https://127.0.0.1:${port}`,
    ca: readFileSync(certificate),
    /** The replicas that answered each client's finished requests, by the client's address. */
    answered() {
      const answered = new Map();
      for (const line of readFileSync(log, "utf8").split("\n").filter(Boolean)) {
        const [client, ...replicas] = line.split(" ");
        answered.set(client, (answered.get(client) ?? new Set()).add(replicas.at(-1)));
      }
      return answered;
    },
  };
}

function replace(name, text, [from, to]) {
  if (!text.includes(from)) {
    throw new Error(`k8s/ingress/${name} has no "${from}"`);
  }
  return text.replace(from, to);
}

function accepts(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("connect", () => (socket.destroy(), resolve(true)));
    socket.on("error", () => resolve(false));
  });
}
