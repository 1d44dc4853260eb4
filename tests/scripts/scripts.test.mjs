// The scripts at the top of the repository, on machines made of fake programs.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const top = fileURLToPath(new URL("../../", import.meta.url));
const folders = [];
after(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

const bash = spawnSync("sh", ["-c", "command -v bash"], { encoding: "utf8" }).stdout.trim();
const perl = "exit 0";

/**
 * A machine on which only these programs exist, each a few lines of shell that also write their call into a list; and a copy
 * of the scripts, in a folder of its own.
 */
function machine(programs) {
  const folder = mkdtempSync(join(tmpdir(), "herald-scripts-"));
  folders.push(folder);
  const bin = join(folder, "bin");
  const calls = join(folder, "calls");
  mkdirSync(bin);
  for (const name of ["bash", "sh", "cat", "chmod", "dirname", "ps", "readlink", "rm", "sed", "sleep"]) {
    const path = spawnSync("sh", ["-c", `command -v ${name}`], { encoding: "utf8" }).stdout.trim();
    symlinkSync(path, join(bin, name));
  }
  const add = (name, lines = "") => {
    writeFileSync(join(bin, name), `#!${bash}\necho "${name} $*" >> "${calls}"\n${lines}\n`);
    chmodSync(join(bin, name), 0o755);
  };
  for (const [name, lines] of Object.entries({ id: "echo 0", ...programs })) add(name, lines);
  for (const script of ["setup.sh", "install_requirements.sh", "kill_port_forward.sh"]) {
    copyFileSync(join(top, script), join(folder, script));
  }
  return {
    folder,
    bin,
    pids: join(folder, "port_forward_pids.txt"),
    calls: () => (existsSync(calls) ? readFileSync(calls, "utf8").trim().split("\n") : []).filter((call) => !/^(id|perl) /.test(call)),
    run(script, args = [], os = "linux-gnu") {
      const env = { PATH: bin, HOME: folder, OSTYPE: os };
      const { status, stdout, stderr } = spawnSync(bash, [join(folder, script), ...args], { env, encoding: "utf8" });
      return { status, stdout, stderr };
    },
  };
}

const complete = { cc: "", make: "", perl, curl: "", rustup: "" };

describe("install_requirements.sh", () => {
  const install = (programs, args, os) => {
    const fake = machine(programs);
    return { ...fake.run("install_requirements.sh", args, os), calls: fake.calls() };
  };
  const rustup = /^\$ curl .*https:\/\/sh\.rustup\.rs \| .*sh -s -- -y/m;

  test("--dry-run on Debian shows what it would install, and runs nothing", () => {
    const { status, stdout, calls } = install({ "apt-get": "" }, ["--dry-run"]);
    assert.equal(status, 0);
    assert.match(stdout, /^\$ apt-get update && apt-get install -y gcc make perl curl$/m);
    assert.match(stdout, rustup);
    assert.deepEqual(calls, []);
  });

  test("on Fedora it is dnf", () => {
    const { stdout } = install({ dnf: "" }, ["--dry-run"]);
    assert.match(stdout, /^\$ dnf install -y gcc make perl curl$/m);
  });

  test("on macOS it is brew", () => {
    const { stdout } = install({ brew: "", cc: "", make: "", curl: "" }, ["--dry-run"], "darwin24");
    assert.match(stdout, /^\$ brew install perl$/m);
    assert.match(stdout, rustup);
  });

  test("on macOS without brew it says where to get it", () => {
    const { status, stderr } = install({}, [], "darwin24");
    assert.equal(status, 1);
    assert.match(stderr, /^Homebrew is needed: https:\/\/brew\.sh/);
  });

  for (const os of ["msys", "cygwin", "win32"]) {
    test(`in a Windows shell (${os}) it says to use WSL`, () => {
      const { status, stderr } = install(complete, [], os);
      assert.equal(status, 1);
      assert.match(stderr, /WSL/);
    });
  }

  test("any other system is not supported", () => {
    const { status, stderr } = install(complete, [], "solaris2.11");
    assert.equal(status, 1);
    assert.equal(stderr, "Unsupported OS: solaris2.11\n");
  });

  test("a Linux without apt-get and dnf is told what is missing", () => {
    const { status, stderr } = install({ ...complete, perl: "exit 1" }, []);
    assert.equal(status, 1);
    assert.equal(stderr, "Unsupported OS: linux-gnu (missing: perl)\n");
  });

  test("sudo is used by everyone but root", () => {
    const { stdout } = install({ id: "echo 1000", "apt-get": "", rustup: "" }, ["--dry-run"]);
    assert.match(stdout, /^\$ sudo apt-get update && sudo apt-get install -y gcc/m);
  });

  test("a perl without the modules that OpenSSL's build uses is not enough", () => {
    const { stdout } = install({ ...complete, perl: "exit 2", "apt-get": "" }, ["--dry-run"]);
    assert.match(stdout, /install -y perl$/m);
  });

  test("where nothing is missing it does nothing", () => {
    const { status, stdout, calls } = install({ ...complete, "apt-get": "", dnf: "" }, []);
    assert.deepEqual({ status, stdout, calls }, { status: 0, stdout: "", calls: [] });
  });

  test("run again it has nothing left to do", () => {
    const put = (name) => `echo "#!${bash}" > "$HOME/bin/${name}"; chmod +x "$HOME/bin/${name}"`;
    const packages = ["make", "perl"].map(put).join("\n");
    const fake = machine({ cc: "", "apt-get": packages, curl: `cat << 'END'\n${put("rustup")}\nEND` });
    assert.equal(fake.run("install_requirements.sh").status, 0);
    const first = fake.calls();
    assert.deepEqual(first.slice(0, 2), ["apt-get update", "apt-get install -y make perl"]);
    assert.match(first[2], /^curl .*sh\.rustup\.rs/);
    const { status, stdout } = fake.run("install_requirements.sh");
    assert.deepEqual({ status, stdout, calls: fake.calls() }, { status: 0, stdout: "", calls: first });
  });

  test("a package manager that fails ends it", () => {
    const { status, calls } = install({ "apt-get": "exit 100" }, []);
    assert.equal(status, 100);
    assert.deepEqual(calls, ["apt-get update"]);
  });
});

describe("setup.sh", () => {
  for (const args of [["dev", "prod"], ["--local", "dev", "prod"]]) {
    test(`${args.join(" ")} starts these environments in the background`, () => {
      const fake = machine({ ...complete, cargo: "" });
      const { status, stdout } = fake.run("setup.sh", args);
      assert.equal(status, 0);
      assert.match(stdout, /^All environments run in one process/m);
      assert.deepEqual(fake.calls(), ["cargo xtask local --background dev prod"]);
    });
  }

  test("without a name all environments are started, and again at the next run", () => {
    const fake = machine({ ...complete, cargo: "" });
    fake.run("setup.sh");
    assert.equal(fake.run("setup.sh").status, 0);
    assert.deepEqual(fake.calls(), Array(2).fill("cargo xtask local --background"));
  });

  test("what is missing is installed first", () => {
    const fake = machine({ ...complete, perl: "exit 1", "apt-get": "", cargo: "" });
    fake.run("setup.sh");
    assert.deepEqual(fake.calls(), ["apt-get update", "apt-get install -y perl", "cargo xtask local --background"]);
  });

  test("a requirement that cannot be installed ends it", () => {
    const fake = machine({ ...complete, perl: "exit 1", "apt-get": "exit 100", cargo: "" });
    assert.equal(fake.run("setup.sh").status, 100);
    assert.deepEqual(fake.calls(), ["apt-get update"]);
  });

  test("an option that it does not know is refused", () => {
    const { status, stderr } = machine(complete).run("setup.sh", ["--cluster"]);
    assert.equal(status, 2);
    assert.match(stderr, /^unknown option --cluster/);
  });

  test("--help says what it does", () => {
    assert.match(machine({}).run("setup.sh", ["--help"]).stdout, /^setup\.sh \[--local\] \[ENV…\]: /);
  });
});

/** A process whose program is named so. */
function started(fake, name, lines = "read -r _") {
  const program = join(fake.folder, name);
  copyFileSync(bash, program);
  chmodSync(program, 0o755);
  const child = spawn(program, ["-c", `${lines}`], { stdio: ["pipe", "pipe", "inherit"] });
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(signal ?? code)));
  return { child, ended, said: new Promise((resolve) => child.stdout.once("data", resolve)) };
}

describe("kill_port_forward.sh", () => {
  test("without the file it finds nothing to end", () => {
    const { status, stdout } = machine({}).run("kill_port_forward.sh");
    assert.deepEqual({ status, stdout }, { status: 0, stdout: "No port-forward processes found.\n" });
  });

  test("it ends every process of ours and removes the file", async () => {
    const fake = machine({});
    const [one, other] = [started(fake, "local"), started(fake, "xtask")];
    writeFileSync(fake.pids, `${one.child.pid}\n${other.child.pid}\n`);
    const { status, stdout } = await inBackground(fake);
    assert.equal(status, 0);
    assert.equal(stdout, `ending local (process ${one.child.pid})\nending xtask (process ${other.child.pid})\n`);
    assert.deepEqual([await one.ended, await other.ended], ["SIGTERM", "SIGTERM"]);
    assert.ok(!existsSync(fake.pids));
  });

  test("a stranger that was given an old number lives on", async () => {
    const fake = machine({});
    const stranger = started(fake, "stranger");
    writeFileSync(fake.pids, `${stranger.child.pid}\n`);
    const { status, stdout } = fake.run("kill_port_forward.sh");
    assert.deepEqual({ status, stdout }, { status: 0, stdout: "" });
    assert.ok(!existsSync(fake.pids));
    assert.equal(stranger.child.exitCode, null);
    stranger.child.stdin.end("\n");
    assert.equal(await stranger.ended, 0);
  });

  test("what ended long ago, and what is no number, are passed over", async () => {
    const fake = machine({});
    const gone = started(fake, "local", "exit 0");
    await gone.ended;
    writeFileSync(fake.pids, `${gone.child.pid}\nnonsense\n\n`);
    const { status, stdout, stderr } = fake.run("kill_port_forward.sh");
    assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: "", stderr: "" });
    assert.ok(!existsSync(fake.pids));
  });

  test("a process that does not listen is killed after 15 seconds", { skip: !process.env.HERALD_TEST_LONG && "takes 15 s: --long" }, async () => {
    const fake = machine({});
    const deaf = started(fake, "local", "trap '' TERM; echo ready; while :; do read -r -t 1 _; done");
    await deaf.said;
    writeFileSync(fake.pids, `${deaf.child.pid}\n`);
    const { status, stderr } = await inBackground(fake);
    assert.equal(status, 0);
    assert.match(stderr, /killing it/);
    assert.equal(await deaf.ended, "SIGKILL");
  });

  /** Not spawnSync: our children are zombies, which a process can still signal, until we have seen their end. */
  function inBackground(fake) {
    const child = spawn(bash, [join(fake.folder, "kill_port_forward.sh")], { env: { PATH: fake.bin } });
    const result = { stdout: "", stderr: "" };
    child.stdout.on("data", (text) => (result.stdout += text));
    child.stderr.on("data", (text) => (result.stderr += text));
    return new Promise((resolve) => child.once("close", (status) => resolve({ ...result, status })));
  }
});

const answers = (port) =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => resolve(true));
    socket.once("error", () => resolve(false)).once("connect", () => socket.destroy());
  });

test("from setup.sh to three pages and back to nothing", { skip: !process.env.HERALD_TEST_LONG && "builds a release: --long" }, async (t) => {
  const ports = [8001, 8002, 8003];
  const free = async () => !(await Promise.all(ports.map(answers))).includes(true);
  if (!(await free())) return t.skip("ports 8001 to 8003 are in use");
  t.after(() => spawnSync("./kill_port_forward.sh", { cwd: top }));
  const setup = () => spawnSync("./setup.sh", { cwd: top, encoding: "utf8" });

  const first = setup();
  assert.equal(first.status, 0, first.stdout + first.stderr);
  for (const [name, port] of [["default", 8001], ["dev", 8002], ["prod", 8003]]) {
    assert.match(first.stdout, new RegExp(`^${name} +http://localhost:${port}$`, "m"));
    const page = await fetch(`http://localhost:${port}/`);
    assert.match(await page.text(), /Hello World Consumer/);
  }
  const ids = readFileSync(join(top, "port_forward_pids.txt"), "utf8");

  const second = setup();
  assert.equal(second.status, 0, second.stdout + second.stderr);
  assert.match(second.stdout, /is running already/);
  assert.equal(readFileSync(join(top, "port_forward_pids.txt"), "utf8"), ids);

  const end = spawnSync("./kill_port_forward.sh", { cwd: top, encoding: "utf8" });
  assert.equal(end.status, 0, end.stderr);
  assert.ok(await free());
  assert.ok(!existsSync(join(top, "port_forward_pids.txt")));
});
