// setup.sh: what it runs, in which order, and what it makes of failures and of Ctrl-C.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { describe, test } from "node:test";
import { bash, build, complete, forwardOf, localOf, machine, started, top } from "./machine.mjs";
import { curl, releases } from "./web.mjs";

/** Nothing here takes longer; what waits for something that does not come fails by it. */
const patience = { timeout: 30_000 };

/** A cargo whose `cargo xtask up` does this. */
const cargo = (up = "") => `[ "$2" != up ] || { ${up || ":"}; }`;
const cluster = (...names) => [["up", ...names], ["forward", "--background", ...names]].map((words) => `cargo xtask ${words.join(" ")}`);
const local = (...names) => [`cargo xtask-local --background ${names.join(" ")}`.trim()];
const fallback = /^Without a cluster everything runs in one process .* as with --local\.$/m;

function setup(programs, args) {
  const fake = machine({ ...complete, cargo: cargo(), ...programs });
  return { fake, ...fake.run("setup.sh", args), calls: fake.calls().map((call) => call.trim()) };
}

describe("setup.sh", () => {
  test("starts the cluster, then the port-forwards", () => {
    const { status, calls, stderr } = setup({}, ["dev", "prod"]);
    assert.deepEqual({ status, calls, stderr }, { status: 0, calls: cluster("dev", "prod"), stderr: "" });
  });

  test("without a name all environments are started, and again at the next run", () => {
    const { fake } = setup({}, []);
    assert.equal(fake.run("setup.sh").status, 0);
    assert.deepEqual(fake.calls(), [...cluster(), ...cluster()]);
  });

  test("--local starts one process, and asks for nothing that only a cluster needs", () => {
    const { status, calls, stdout } = setup({ minikube: null, kubectl: null, helm: null, cc: "echo libc.a" }, ["--local", "dev"]);
    assert.deepEqual({ status, calls, stdout }, { status: 0, calls: local("dev"), stdout: "" });
  });

  test("what is missing is installed first, and found", (t) => {
    const fake = machine({ ...build, curl: curl(releases(t, bash)), cargo: '[ "$(kubectl)" = kubectl ] || exit 9' });
    assert.equal(fake.run("setup.sh", ["dev"]).status, 0);
    assert.deepEqual(fake.calls().slice(-2), cluster("dev"));
  });

  test("without a cluster everything runs in one process, and a line gives the reason", () => {
    const up = "echo 'minikube start: no driver was found' >&2; exit 3";
    const { status, calls, stdout, stderr } = setup({ cargo: cargo(up) }, ["dev"]);
    assert.equal(status, 0);
    assert.deepEqual(calls, ["cargo xtask up dev", ...local("dev")]);
    assert.match(stdout, fallback);
    assert.equal(stderr, "minikube start: no driver was found\n");
  });

  test("so it does where the tools for a cluster cannot be fetched", () => {
    const { status, calls, stdout, stderr } = setup({ helm: null, curl: curl("/no/such/folder") }, ["dev"]);
    assert.equal(status, 0);
    assert.deepEqual(calls.filter((call) => !call.startsWith("curl")), local("dev"));
    assert.match(stdout, fallback);
    assert.match(stderr, /^cannot fetch https:\/\/get\.helm\.sh\/.*\n$/);
  });

  for (const code of [1, 2, 101]) {
    test(`a cluster that fails with ${code} ends it with ${code}`, () => {
      const { status, calls, stdout } = setup({ cargo: cargo(`exit ${code}`) }, []);
      assert.deepEqual({ status, calls, stdout }, { status: code, calls: ["cargo xtask up"], stdout: "" });
    });
  }

  test("port-forwards that fail end it with their code, also with 3", () => {
    const { status, calls } = setup({ cargo: `[ "$2" != forward ] || exit 3` }, []);
    assert.deepEqual({ status, calls }, { status: 3, calls: cluster() });
  });

  for (const args of [[], ["--local"]]) {
    test(`a requirement that cannot be installed ends it (${args[0] ?? "cluster"})`, () => {
      const { status, calls } = setup({ perl: "exit 1", "apt-get": "exit 100" }, args);
      assert.deepEqual({ status, calls }, { status: 100, calls: ["apt-get update"] });
    });
  }

  test("with --kafka the environments read a Kafka that runs already", () => {
    const { status, calls } = setup({}, ["--kafka", "kafka.example:9092", "dev"]);
    const forward = "cargo xtask forward --background dev";
    assert.deepEqual({ status, calls }, { status: 0, calls: ["cargo xtask up --kafka kafka.example:9092 dev", forward] });
  });

  test("with --kafka there is no way without a cluster, which has a broker of its own", () => {
    const { status, calls } = setup({ cargo: cargo("exit 3") }, ["--kafka", "kafka.example:9092"]);
    assert.deepEqual({ status, calls }, { status: 3, calls: ["cargo xtask up --kafka kafka.example:9092"] });
  });

  test("with --secure there is no way without a cluster, which would be open to everyone", () => {
    const { status, calls } = setup({ cargo: cargo("exit 3") }, ["--secure", "dev"]);
    assert.deepEqual({ status, calls }, { status: 3, calls: ["cargo xtask up --secure dev"] });
  });

  test("--kafka without an address is refused", () => {
    const { status, stderr, calls } = setup({}, ["--kafka"]);
    assert.deepEqual({ status, calls }, { status: 2, calls: [] });
    assert.match(stderr, /^--kafka needs HOST:PORT/);
  });

  test("an option that it does not know is refused", () => {
    const { status, stderr, calls } = setup({}, ["--cluster"]);
    assert.deepEqual({ status, calls }, { status: 2, calls: [] });
    assert.match(stderr, /^unknown option --cluster/);
  });

  test("--help prints what it does, and does nothing else", () => {
    const { stdout } = setup({}, ["--help"]);
    assert.match(stdout, /^setup\.sh \[--local \[--fresh\] \| --secure \| --kafka HOST:PORT\] \[ENV…\]: [^#]*--local: [^#]*--kafka: [^#]*--secure: .*\n$/);
  });
});

describe("from one way to the other", () => {
  test("`local` serves until the cluster is up, then makes room for the port-forwards", patience, async () => {
    const listed = 'if [ -e port_forward_pids.txt ]; then echo "$2: listed"; else echo "$2: gone"; fi';
    const fake = machine({ ...complete, cargo: listed });
    const old = started(fake, localOf("dev"));
    writeFileSync(fake.pids, `${old.child.pid}\n`);
    const { status, stdout } = await fake.start("setup.sh").ended;
    assert.equal(status, 0);
    assert.equal(stdout, `up: listed\nending local (process ${old.child.pid})\nforward: gone\n`);
    assert.equal(await old.ended, "SIGTERM");
  });

  test("port-forwards make room for `local`", patience, async () => {
    const fake = machine({ ...complete, cargo: "" });
    const old = started(fake, forwardOf("dev"));
    writeFileSync(fake.pids, `${old.child.pid} dev\n`);
    const { status } = await fake.start("setup.sh", ["--local"]).ended;
    assert.equal(status, 0);
    assert.equal(await old.ended, "SIGTERM");
    assert.ok(!existsSync(fake.pids));
  });

  test("so do those of a cluster that is gone", patience, async () => {
    const fake = machine({ ...complete, cargo: cargo("exit 3") });
    const old = started(fake, forwardOf("dev"));
    writeFileSync(fake.pids, `${old.child.pid} dev\n`);
    assert.equal((await fake.start("setup.sh").ended).status, 0);
    assert.equal(await old.ended, "SIGTERM");
  });

  for (const [command, args, line] of [[localOf("dev"), ["--local"], ""], [forwardOf("dev"), [], " dev"]]) {
    test(`what runs in the same way goes on (${command[0]})`, patience, async () => {
      const fake = machine({ ...complete, cargo: "" });
      const same = started(fake, command);
      writeFileSync(fake.pids, `${same.child.pid}${line}\n`);
      assert.equal((await fake.start("setup.sh", args).ended).status, 0);
      assert.ok(existsSync(fake.pids));
      same.child.stdin.end("\n");
      assert.equal(await same.ended, 0);
    });
  }

  for (const [args, line] of [[[], ""], [["--local"], " dev"]]) {
    test(`what holds the ports and cannot be ended ends it with that code (${args[0] ?? "cluster"})`, () => {
      const fake = machine({ ...complete, cargo: "" });
      writeFileSync(fake.pids, `123${line}\n`);
      writeFileSync(join(fake.folder, "kill_port_forward.sh"), `#!${bash}\nexit 7\n`);
      assert.equal(fake.run("setup.sh", args).status, 7);
      assert.deepEqual(fake.calls().map((call) => call.trim()), args.length > 0 ? [] : ["cargo xtask up"]);
    });
  }

  test("a cluster that fails does not stop `local`", patience, async () => {
    const fake = machine({ ...complete, cargo: cargo("exit 1") });
    const old = started(fake, localOf("dev"));
    writeFileSync(fake.pids, `${old.child.pid}\n`);
    assert.equal((await fake.start("setup.sh").ended).status, 1);
    old.child.stdin.end("\n");
    assert.equal(await old.ended, 0);
  });
});

describe("Ctrl-C, then the same again:", () => {
  /** What a program does at its first call: say so, and sleep until a signal comes. */
  const asleep = 'if [ ! -e "$HOME/asleep" ]; then touch "$HOME/asleep"; echo asleep; sleep 60; fi';
  const put = (name) => `echo "#!${bash}" > "$HOME/bin/${name}"; chmod +x "$HOME/bin/${name}"`;
  const xtask = (command) => `if [ "$2" = ${command} ]; then ${asleep}; fi`;

  const phases = [
    { phase: "the package manager", programs: { make: null, "apt-get": `${asleep}\n${put("make")}` }, then: cluster() },
    { phase: "Rust", programs: { rustup: null, curl: `${asleep}\necho '${put("rustup")}'` }, then: cluster() },
    { phase: "the tools for the cluster", programs: { kubectl: null }, web: true, then: cluster() },
    { phase: "cargo xtask up", programs: { cargo: xtask("up") }, then: cluster() },
    { phase: "cargo xtask forward", programs: { cargo: xtask("forward") }, then: cluster() },
    { phase: "cargo xtask-local", args: ["--local"], programs: { cargo: `if [ "$1" = xtask-local ]; then ${asleep}; fi` }, then: local() },
    { phase: "a command that makes of it that no cluster can be had", programs: { cargo: `trap 'exit 3' INT; ${xtask("up")}` }, then: cluster() },
  ];
  for (const { phase, programs, web, args, then } of phases) {
    test(phase, patience, async (t) => {
      const slow = web ? { curl: `${asleep} >&2\n${curl(releases(t, bash))}` } : {};
      const fake = machine({ ...complete, cargo: "", ...programs, ...slow });
      const first = fake.start("setup.sh", args);
      await new Promise((resolve) => {
        const seen = (text) => String(text).includes("asleep") && resolve();
        first.child.stdout.on("data", seen);
        first.child.stderr.on("data", seen);
        // One whose output is kept does not say it.
        const look = setInterval(() => existsSync(join(fake.folder, "asleep")) && resolve(), 20);
        t.after(() => clearInterval(look));
      });
      const before = fake.calls().length;
      process.kill(-first.child.pid, "SIGINT");
      const { status, signal } = await first.ended;
      assert.ok(status === 130 || signal === "SIGINT", `ended with ${status ?? signal}`);
      assert.equal(fake.calls().length, before, "it went on after Ctrl-C");

      const { status: second, stderr } = fake.run("setup.sh", args);
      assert.equal(second, 0, stderr);
      assert.deepEqual(fake.calls().slice(-then.length), then);
    });
  }

  test("while `local` is being ended", patience, async () => {
    const fake = machine({ ...complete, cargo: "" });
    const slow = started(fake, localOf("dev"), "trap 'read -r -t 1 _; exit' TERM; echo ready; while :; do read -r -t 1 _; done");
    await slow.said;
    writeFileSync(fake.pids, `${slow.child.pid}\n`);
    const first = fake.start("setup.sh");
    await new Promise((resolve) => first.child.stdout.on("data", (text) => String(text).includes("ending") && resolve()));
    process.kill(-first.child.pid, "SIGINT");
    const { status } = await first.ended;
    assert.equal(status, 130);
    assert.equal((await fake.start("setup.sh").ended).status, 0);
    assert.deepEqual(fake.calls(), ["cargo xtask up", ...cluster()].map((call) => call.trim()));
    assert.ok(!existsSync(fake.pids));
    await slow.ended;
  });
});

const answers = (port) =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => resolve(true));
    socket.once("error", () => resolve(false)).once("connect", () => socket.destroy());
  });

test("from setup.sh --local to three pages and back to nothing", { skip: !process.env.HERALD_TEST_LONG && "builds a release: --long" }, async (t) => {
  const ports = [8001, 8002, 8003];
  const free = async () => !(await Promise.all(ports.map(answers))).includes(true);
  if (!(await free())) return t.skip("ports 8001 to 8003 are in use");
  t.after(() => spawnSync("./kill_port_forward.sh", { cwd: top }));
  const setup = () => spawnSync("./setup.sh", ["--local"], { cwd: top, encoding: "utf8" });

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
