// The Tiltfile: the resources it declares, and the commands it has Tilt run.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { machine, top, which } from "./machine.mjs";

function calls(namespace = "default") {
  const run = spawnSync("python3", [fileURLToPath(new URL("tiltfile.py", import.meta.url)), join(top, "Tiltfile")], {
    encoding: "utf8",
    env: { ...process.env, NAMESPACE: namespace },
  });
  assert.equal(run.status, 0, run.stderr);
  return JSON.parse(run.stdout);
}
/** As Tilt runs a command, on a machine of fake programs. */
const sh = (fake, command) => spawnSync(which("sh"), ["-c", command], { cwd: fake.folder, env: { PATH: fake.bin }, encoding: "utf8" });
const of = (name) => calls().filter((call) => call.function === name);

/** The names of the services, from the table that xtask reads. */
const services = [...readFileSync(join(top, "services.toml"), "utf8").matchAll(/^name = "(.*)"$/gm)].map(([, name]) => name);

describe("the Tiltfile", { skip: !which("python3") && "needs python3" }, () => {
  test("is for the namespace default alone", () => {
    assert.equal(calls("kube-system").at(-1).function, "fail");
    assert.ok(calls().every((call) => call.function !== "fail"));
  });

  test("builds an image for each service, from sources that are there", () => {
    const builds = of("custom_build");
    assert.deepEqual(builds.map((call) => call.args[0]), services.map((name) => `herald/${name}`));
    for (const { options } of builds) {
      for (const path of options.deps) assert.ok(existsSync(join(top, path)), path);
      assert.ok(options.deps.some((path) => statSync(join(top, path)).isDirectory()));
      assert.ok(options.skips_local_docker && options.disable_push);
    }
  });

  test("its builds load the image and leave its name where Tilt reads it", () => {
    for (const { args, options } of of("custom_build")) {
      const [repository, command] = args;
      const images = `echo '$ cargo build'; echo '${repository}:0123456789abcdef /a b/c.tar'; echo 'built' >&2`;
      const fake = machine({ cargo: images, minikube: 'echo "$#" > arguments' });
      assert.equal(sh(fake, command).status, 0);
      assert.deepEqual(fake.calls(), [`cargo xtask images --debug ${repository.split("/")[1]}`, "minikube image load /a b/c.tar"]);
      assert.equal(readFileSync(join(fake.folder, "arguments"), "utf8"), "3\n", "the archive's name is one");
      assert.equal(readFileSync(join(fake.folder, options.outputs_image_ref_to), "utf8"), `${repository}:0123456789abcdef\n`);
    }
  });

  test("a build that fails loads nothing", () => {
    for (const { args } of of("custom_build")) {
      const fake = machine({ cargo: "echo 'error: expected item' >&2; exit 101", minikube: "" });
      assert.notEqual(sh(fake, args[1]).status, 0);
      assert.equal(fake.calls().length, 1);
    }
  });

  test("the chart has what it names", { skip: !which("helm") && "needs helm" }, () => {
    const { status, stdout, stderr } = spawnSync("sh", ["-c", of("local")[0].args[0]], { cwd: top, encoding: "utf8" });
    assert.equal(status, 0, stderr);
    const manifests = stdout.split(/^---$/m);
    for (const { args } of of("k8s_resource")) {
      const named = (text) => /^kind: Deployment$/m.test(text) && text.includes(`\n  name: ${args[0]}\n`);
      assert.equal(manifests.filter(named).length, 1, args[0]);
    }
    for (const { args } of of("custom_build")) assert.match(stdout, new RegExp(`image: "?${args[0]}:`));
    // Those that do not end by themselves, and the test's pod, are not for this loop.
    assert.doesNotMatch(stdout, /^kind: (Job|Pod)$/m);
  });

  test("the forward goes where its links point, after the one of setup.sh has ended", () => {
    const [{ args, options }] = of("local_resource");
    assert.equal(args[0], "forward");
    const fake = machine({ cargo: "" });
    assert.equal(sh(fake, options.serve_cmd).status, 0);
    assert.deepEqual(fake.calls(), ["cargo xtask forward --stop default", "cargo xtask forward default"]);
    const ports = readFileSync(join(top, "environments.toml"), "utf8").matchAll(/^local_ports\.\w+ = (\d+)/gm);
    assert.deepEqual(options.links, [...ports].slice(0, 2).map(([, port]) => `http://localhost:${port}`));
  });
});
