// An empty database of its own for each test.

import { spawn, spawnSync } from "node:child_process";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after } from "node:test";

import { postgresPrograms } from "./environment.js";
import { randomName } from "./kafka.js";
import { freePort } from "./ports.js";
import { until } from "./wait.js";

/** A file of SQLite. `written` and `read` are the options of the projector and of the gateway; `remove` deletes it. */
export async function sqlite() {
  const folder = await mkdtemp(path.join(os.tmpdir(), "herald-sqlite-"));
  const options = ["--database-url", `sqlite://${folder}/herald.db`];
  return { written: options, read: options, remove: () => rm(folder, { recursive: true, force: true }) };
}

/** A schema of PostgreSQL, and a role that may only read it, which is the gateway's. `asReader` executes a statement with that role. */
export async function postgres() {
  const server = await startedPostgres();
  const [schema, role] = [randomName("schema"), randomName("reader")];
  succeed(server.sql("herald", `CREATE ROLE "${role}" LOGIN`));
  return {
    written: ["--database-url", server.url("herald"), "--database-schema", schema, "--database-reader-role", role],
    read: ["--database-url", server.url(role), "--database-schema", schema],
    schema,
    asReader: (statement) => server.sql(role, statement),
    remove: () => {}, // with the server
  };
}

/** Stops PostgreSQL and deletes its folder when our process ends, however it does. */
const GUARD = `read -r _
pid="$0/data/postmaster.pid"
[ ! -f "$pid" ] || kill -s QUIT "$(head -1 "$pid")"
while [ -f "$pid" ] && kill -s 0 "$(head -1 "$pid")" 2>/dev/null; do sleep 0.1; done
rm -rf "$0"`;

let started;

/** The server of all tests of this file. */
function startedPostgres() {
  started ??= startPostgres();
  return started;
}

after(async () => (await started)?.stop());

async function startPostgres() {
  const folder = await mkdtemp(path.join(os.tmpdir(), "herald-postgres-"));
  await chmod(folder, 0o777); // the server runs as another user than root
  const guard = spawn("sh", ["-c", GUARD, folder], { stdio: ["pipe", "ignore", "ignore"], detached: true });
  const data = path.join(folder, "data");
  succeed(spawnSync(...command("initdb", ["-U", "herald", "-A", "trust", "-E", "UTF8", "--no-sync", "-D", data]), { cwd: folder, encoding: "utf8" }));
  const port = await freePort();
  const settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"];
  const child = spawn(...command("postgres", ["-D", data, "-k", folder, "-p", port, ...settings]), { cwd: folder, stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (log += text));
  const server = {
    url: (role) => `postgres://${role}@127.0.0.1:${port}/postgres`,
    sql: (role, statement) => {
      const options = ["-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", server.url(role), "-c", statement];
      return spawnSync(path.join(postgresPrograms, "psql"), options, { encoding: "utf8" });
    },
    async stop() {
      const ended = new Promise((resolve) => guard.once("exit", resolve));
      guard.stdin.end();
      await ended;
    },
  };
  await until(() => `PostgreSQL answers; it says:\n${log}`, () => server.sql("herald", "SELECT 1").status === 0, 60_000);
  return server;
}

/** One of PostgreSQL's programs, which refuse to run as root. */
function command(name, args) {
  const program = path.join(postgresPrograms, name);
  return process.getuid() === 0 ? ["runuser", ["-u", "postgres", "--", program, ...args]] : [program, args];
}

function succeed({ status, stderr, error }) {
  if (status !== 0) {
    throw error ?? new Error(stderr);
  }
}
