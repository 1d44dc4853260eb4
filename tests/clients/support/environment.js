// What the tests need from around them, and what happens when it is not there.

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));

/** Address of a Kafka that does not create topics by itself. */
export const kafkaAddress = process.env.HERALD_TEST_KAFKA;

const binaries = path.resolve(process.env.HERALD_BIN_DIR ?? path.join(here, "../../../target/debug"));

/** The path of one of Herald's programs. */
export function binary(name) {
  const file = path.join(binaries, name);
  if (!existsSync(file)) {
    throw new Error(`${file} is missing; run cargo build, or set HERALD_BIN_DIR to the folder of the programs`);
  }
  return file;
}

/** A python with the modules of requirements.txt, or undefined. */
export const python = [process.env.HERALD_PYTHON, "python3"]
  .filter(Boolean)
  .find((name) => runs(name, "-c", "import socketio, requests, websocket, websockets, openapi_spec_validator"));

/** The folder of Kafka's jars, for a broker of our own. */
export const kafkaJars = process.env.HERALD_KAFKA_JARS;

/** The folder of PostgreSQL's programs, the newest below Debian's folder or one on the PATH, or undefined. */
export const postgresPrograms = [...debianPostgres(), ...(process.env.PATH ?? "").split(path.delimiter)].find((folder) =>
  ["initdb", "postgres", "psql"].every((name) => existsSync(path.join(folder, name))),
);

/**
 * The `skip` option of tests that need something: why they cannot run, or false. In CI they fail instead.
 */
export function without(...needs) {
  const missing = {
    kafka: !kafkaAddress && "HERALD_TEST_KAFKA does not name a Kafka",
    jars: !kafkaJars && "HERALD_KAFKA_JARS does not name the folder of Kafka's jars",
    python: !python && "no python with the modules of requirements.txt; HERALD_PYTHON can name one",
    openssl: !runs("openssl", "version") && "openssl is not installed",
    curl: !runs("curl", "--version") && "curl is not installed",
    postgres: !postgresPrograms && "PostgreSQL (initdb, postgres, psql) is not installed",
    kcat: !runs("kcat", "-V") && "kcat is not installed",
    slowhttptest: !runs("sh", "-c", "command -v slowhttptest") && "slowhttptest is not installed",
  };
  const why = needs.map((need) => missing[need]).find(Boolean);
  if (why && process.env.CI === "true") {
    throw new Error(why);
  }
  return why || false;
}

/** The `skip` option of tests that take long: a reason, or that of what they need and is missing. */
export function withoutLong(...needs) {
  return process.env.HERALD_TEST_LONG ? without(...needs) : "it takes long (HERALD_TEST_LONG)";
}

function debianPostgres() {
  const folder = "/usr/lib/postgresql";
  const versions = existsSync(folder) ? readdirSync(folder) : [];
  return versions.sort((a, b) => b - a).map((version) => path.join(folder, version, "bin"));
}

function runs(command, ...args) {
  return spawnSync(command, args, { stdio: "ignore" }).status === 0;
}
