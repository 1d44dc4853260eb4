/** All services in one process with an embedded Kafka, for tests that need no Kafka of their own. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "./browser.js";
import { atEnd, folder, kill, run } from "./consumer.js";

/** Why it cannot be started, or undefined. */
export const noLocal = existsSync(join(folder, "local")) ? undefined : `there is no program local in ${folder} (cargo build, or HERALD_BIN_DIR)`;

/** Starts the environment dev. Returns the addresses of its page and of its gateway. It ends with the test. */
export async function startLocal(context, environment = {}) {
  const data = mkdtempSync(join(tmpdir(), "herald-local-"));
  atEnd(context, () => rmSync(data, { recursive: true }));
  const ports = ["ports", "gateway-ports", "likes-port", "counts-port", "rooms-port"].map((option) => `--${option}=0`);
  const local = run("local", ["dev", ...ports, "--admin-listen=127.0.0.1:0", `--data-dir=${data}`], environment);
  atEnd(context, () => kill(local));
  const urls = () => [...local.log.matchAll(/^(?:dev)? +(http:\S+)/gm)].map(([, url]) => url);
  await until("local prints its addresses", () => {
    if (local.exitCode !== null) throw new Error(`local has ended:\n${local.log}`);
    return urls().length === 2;
  }, 60_000);
  const [page, gateway] = urls();
  return { page, gateway };
}
