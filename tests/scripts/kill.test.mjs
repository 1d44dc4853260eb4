// kill_port_forward.sh: what it ends, and what it does not.

import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { forwardOf, localOf, machine, started } from "./machine.mjs";

describe("kill_port_forward.sh", () => {
  test("without the file it finds nothing to end", () => {
    const { status, stdout } = machine({}).run("kill_port_forward.sh");
    assert.deepEqual({ status, stdout }, { status: 0, stdout: "No port-forward processes found.\n" });
  });

  test("it ends every process of ours, with an environment beside it or not, and removes the file", async () => {
    const fake = machine({});
    const [one, other] = [started(fake, localOf("dev")), started(fake, forwardOf("dev"))];
    writeFileSync(fake.pids, `${one.child.pid}\n${other.child.pid} dev\n`);
    // Not `run`: our children are zombies, which a process can still signal, until we have seen their end.
    const { status, stdout } = await fake.start("kill_port_forward.sh").ended;
    assert.equal(status, 0);
    assert.equal(stdout, `ending local (process ${one.child.pid})\nending dev (process ${other.child.pid})\n`);
    assert.deepEqual([await one.ended, await other.ended], ["SIGTERM", "SIGTERM"]);
    assert.ok(!existsSync(fake.pids));
  });

  const strangers = [
    { command: ["stranger", "dev"], listed: "" },
    { command: ["stranger", "dev"], listed: " dev" },
    { command: ["libexec/postfix/local", "dev"], listed: "" },
    { command: ["other/target/debug/xtask", "check"], listed: " dev" },
    { command: forwardOf("prod"), listed: " dev" },
  ];
  for (const { command, listed } of strangers) {
    test(`a stranger that was given an old number lives on (${command.join(" ")}, listed as "<pid>${listed}")`, async () => {
      const fake = machine({});
      const stranger = started(fake, command);
      writeFileSync(fake.pids, `${stranger.child.pid}${listed}\n`);
      const { status, stdout } = fake.run("kill_port_forward.sh");
      assert.deepEqual({ status, stdout }, { status: 0, stdout: "" });
      assert.ok(!existsSync(fake.pids));
      assert.equal(stranger.child.exitCode, null);
      stranger.child.stdin.end("\n");
      assert.equal(await stranger.ended, 0);
    });
  }

  test("one that cannot be ended is named and stays listed, and the others are ended", async () => {
    const fake = machine({});
    const [foreign, own] = [started(fake, forwardOf("dev")), started(fake, forwardOf("prod"))];
    writeFileSync(fake.pids, `${foreign.child.pid} dev\n${own.child.pid} prod\n`);
    // As the system answers for a process of another user.
    const refused = join(fake.folder, "refused");
    const sentence = `bash: kill: (${foreign.child.pid}) - Operation not permitted`;
    writeFileSync(refused, `kill() { [[ $* != *${foreign.child.pid}* ]] || { echo "${sentence}" >&2; return 1; }; builtin kill "$@"; }\n`);
    const { status, stderr } = await fake.start("kill_port_forward.sh", [], { BASH_ENV: refused }).ended;
    const expected = `cannot end process ${foreign.child.pid}: (${foreign.child.pid}) - Operation not permitted\n`;
    assert.deepEqual({ status, stderr }, { status: 1, stderr: expected });
    assert.equal(await own.ended, "SIGTERM");
    assert.equal(readFileSync(fake.pids, "utf8"), `${foreign.child.pid} dev\n`);
    foreign.child.stdin.end("\n");
    assert.equal(await foreign.ended, 0);
  });

  test("what ended long ago, and what is no number, are passed over", async () => {
    const fake = machine({});
    const gone = started(fake, localOf("dev"), "exit 0");
    await gone.ended;
    writeFileSync(fake.pids, `${gone.child.pid} prod\nnonsense\n\n`);
    const { status, stdout, stderr } = fake.run("kill_port_forward.sh");
    assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: "", stderr: "" });
    assert.ok(!existsSync(fake.pids));
  });

  test("a process that does not listen is killed after 15 seconds", { skip: !process.env.HERALD_TEST_LONG && "takes 15 s: --long" }, async () => {
    const fake = machine({});
    const deaf = started(fake, localOf("dev"), "trap '' TERM; echo ready; while :; do read -r -t 1 _; done");
    await deaf.said;
    writeFileSync(fake.pids, `${deaf.child.pid}\n`);
    const { status, stderr } = await fake.start("kill_port_forward.sh").ended;
    assert.equal(status, 0);
    assert.match(stderr, /killing it/);
    assert.equal(await deaf.ended, "SIGKILL");
  });
});
