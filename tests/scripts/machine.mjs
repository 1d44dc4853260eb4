// A machine made of fake programs, for the scripts at the top of the repository.

import { spawn, spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";

export const top = fileURLToPath(new URL("../../", import.meta.url));
const folders = [];
after(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

export const which = (name) => spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).stdout.trim();
export const bash = which("bash");
const real = "bash sh cat chmod dirname grep gzip mkdir mktemp mv ps rm sed sha256sum sleep tar touch tr".split(" ");

/** Commands that only query and change nothing. */
const question = /^(id|perl|uname|xcode-select) ?|^cc -print|^helm version/;

/** Everything that building needs. */
export const build = { cc: 'echo "/usr/lib/libc.a"', make: "", perl: "", curl: "exit 6", rustup: "", "xcode-select": "" };
/** Everything there is to install. */
export const complete = { ...build, minikube: "", kubectl: "", helm: "echo v4.3.1+gabcdef0" };

/**
 * A machine on which only these programs exist, each a few lines of shell that also write their call into a list; and a copy
 * of the scripts, in a folder of its own that is the user's home as well. A program of `null` is one that is really missing.
 */
export function machine(programs) {
  const folder = mkdtempSync(join(tmpdir(), "herald-scripts-"));
  folders.push(folder);
  const bin = join(folder, "bin");
  const calls = join(folder, "calls");
  mkdirSync(bin);
  const given = { diff: "", id: "echo 0", uname: "echo x86_64", ...programs };
  for (const name of real) if (!(name in given) && which(name)) symlinkSync(which(name), join(bin, name));
  for (const [name, lines] of Object.entries(given)) {
    if (lines === null) continue;
    writeFileSync(join(bin, name), `#!${bash}\necho "${name} $*" >> "${calls}"\n${lines}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  for (const script of ["setup.sh", "install_requirements.sh", "kill_port_forward.sh"]) {
    copyFileSync(join(top, script), join(folder, script));
  }
  const env = (os, variables) => ({ PATH: bin, HOME: folder, OSTYPE: os, ...variables });
  return {
    folder,
    bin,
    pids: join(folder, "port_forward_pids.txt"),
    calls: () => (existsSync(calls) ? readFileSync(calls, "utf8").trim().split("\n") : []).filter((call) => !question.test(call)),
    run(script, args = [], os = "linux-gnu", variables = {}) {
      const options = { env: env(os, variables), encoding: "utf8" };
      const { status, stdout, stderr } = spawnSync(bash, [join(folder, script), ...args], options);
      return { status, stdout, stderr };
    },
    /** In a process group of its own, as a terminal does it; not `run`, where a test has other processes to look after. */
    start(script, args = [], variables = {}) {
      const child = spawn(bash, [join(folder, script), ...args], { env: env("linux-gnu", variables), detached: true });
      const result = { stdout: "", stderr: "" };
      child.stdout.on("data", (text) => (result.stdout += text));
      child.stderr.on("data", (text) => (result.stderr += text));
      // "close" comes when nobody holds its output any more, so that its children have ended too.
      const ended = new Promise((resolve) => child.once("close", (status, signal) => resolve({ ...result, status, signal })));
      return { child, ended };
    },
  };
}

/** The command lines of what runs in the background. */
export const forwardOf = (environment) => ["target/debug/xtask", "forward", environment];
export const localOf = (environment) => ["target/release/local", environment];

/** A process with the command line `program script rest`, whose script consists of `lines`. */
export function started(fake, [name, script, ...rest], lines = "read -r _") {
  const program = join(fake.folder, name);
  mkdirSync(dirname(program), { recursive: true });
  if (!existsSync(program)) copyFileSync(bash, program);
  chmodSync(program, 0o755);
  writeFileSync(join(fake.folder, script), `${lines}\n`);
  const child = spawn(program, [script, ...rest], { cwd: fake.folder, stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
  return { child, ended, said: new Promise((resolve) => child.stdout.once("data", resolve)) };
}
