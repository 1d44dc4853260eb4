// install_requirements.sh on every kind of machine.

import assert from "node:assert/strict";
import { accessSync, constants, existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { bash, build, complete, machine, which } from "./machine.mjs";
import { addresses, curl, releases } from "./web.mjs";

const install = (programs, args, os) => {
  const fake = machine(programs);
  return { ...fake.run("install_requirements.sh", args, os), calls: fake.calls(), fake };
};
const rustup = /^\$ curl .*https:\/\/sh\.rustup\.rs \| .*sh -s -- -y/m;
const lines = (text) => text.trim().split("\n");

describe("--dry-run shows what it would install, and runs nothing:", () => {
  const platforms = [
    { on: "Debian", programs: { "apt-get": "" }, packages: "$ apt-get update && apt-get install -y gcc make perl curl", libc: "$ apt-get update && apt-get install -y libc6-dev" },
    { on: "Fedora", programs: { dnf: "" }, packages: "$ dnf install -y gcc make perl curl", libc: "$ dnf install -y glibc-static" },
    { on: "Fedora on ARM", programs: { dnf: "", uname: "echo aarch64" }, packages: "$ dnf install -y gcc make perl curl", libc: "$ dnf install -y glibc-static", machine: "linux/arm64" },
    { on: "macOS", os: "darwin24", programs: { brew: "", "xcode-select": "" }, packages: "$ brew install make perl curl", machine: "darwin/amd64" },
    { on: "macOS on ARM", os: "darwin24", programs: { brew: "", "xcode-select": "", uname: "echo arm64" }, packages: "$ brew install make perl curl", machine: "darwin/arm64" },
  ];
  for (const { on, os, programs, packages, libc, machine = "linux/amd64" } of platforms) {
    const [system, kind] = machine.split("/");
    test(`on ${on}`, () => {
      const { status, stdout, stderr, calls, fake } = install(programs, ["--dry-run"], os);
      assert.deepEqual({ status, stderr, calls }, { status: 0, stderr: "", calls: [] });
      const shown = lines(stdout);
      assert.equal(shown.shift(), packages);
      assert.match(shown.shift(), rustup);
      if (libc) assert.equal(shown.shift(), libc);
      const bin = join(fake.folder, ".local/bin");
      assert.deepEqual(shown, [
        `$ curl -fL https://github.com/kubernetes/minikube/releases/download/v1.38.1/minikube-${system}-${kind} | cat > ${bin}/minikube`,
        `$ curl -fL https://dl.k8s.io/release/v1.34.4/bin/${system}/${kind}/kubectl | cat > ${bin}/kubectl`,
        `$ curl -fL https://get.helm.sh/helm-v4.3.1-${system}-${kind}.tar.gz | tar -xzOf - ${system}-${kind}/helm > ${bin}/helm`,
      ]);
      assert.ok(!existsSync(bin));
    });
  }

  test("with --local nothing of it is for a cluster", () => {
    for (const args of [["--local", "--dry-run"], ["--dry-run", "--local"]]) {
      const { stdout, calls } = install({ "apt-get": "" }, args);
      assert.equal(lines(stdout).length, 2);
      assert.match(stdout, /^\$ apt-get .* gcc make perl curl\n\$ curl .*sh\.rustup\.rs/);
      assert.deepEqual(calls, []);
    }
  });
});

describe("what it cannot help:", () => {
  test("macOS without brew prints where to get it", () => {
    const { status, stderr } = install({ "xcode-select": "" }, [], "darwin24");
    assert.equal(status, 1);
    assert.equal(stderr, "Homebrew is needed: https://brew.sh (missing: make perl curl)\n");
  });

  test("macOS needs no brew where it has nothing to install", () => {
    assert.equal(install(complete, [], "darwin24").status, 0);
  });

  test("macOS without the command line tools prints how to get a compiler", () => {
    const { status, stderr } = install({ ...complete, "xcode-select": "exit 2" }, [], "darwin24");
    assert.equal(status, 1);
    assert.match(stderr, /xcode-select --install/);
  });

  for (const os of ["msys", "cygwin", "win32"]) {
    test(`in a Windows shell (${os}) it recommends WSL`, () => {
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

  test("a Linux without apt-get and dnf prints what is missing", () => {
    const { status, stderr } = install({ ...complete, perl: "exit 1" }, []);
    assert.equal(status, 1);
    assert.equal(stderr, "Neither apt-get nor dnf is here: install these yourself (missing: perl)\n");
  });

  test("an option that it does not know is refused", () => {
    const { status, stderr } = install(complete, ["--cluster"]);
    assert.equal(status, 2);
    assert.match(stderr, /^unknown option --cluster/);
  });

  test("a package manager that fails ends it", () => {
    const { status, calls } = install({ "apt-get": "exit 100" }, []);
    assert.equal(status, 100);
    assert.deepEqual(calls, ["apt-get update"]);
  });

  test("Rust without the internet is one sentence that names it, and no success", () => {
    const { status, stderr } = install({ ...complete, rustup: null }, []);
    assert.equal(status, 1);
    assert.match(stderr, /^cannot install Rust from https:\/\/sh\.rustup\.rs: .*\n$/);
  });
});

describe("only what is missing:", () => {
  test("sudo is used by everyone but root, and for packages alone", () => {
    const { stdout } = install({ id: "echo 1000", "apt-get": "", rustup: "" }, ["--dry-run"]);
    assert.match(stdout, /^\$ sudo apt-get update && sudo apt-get install -y gcc/m);
    assert.ok(lines(stdout).every((line) => !line.includes("sudo") || line.includes("apt-get")));
  });

  test("a perl without the modules that OpenSSL's build uses is not enough", () => {
    const { stdout } = install({ ...complete, perl: "exit 2", "apt-get": "" }, ["--dry-run"]);
    assert.equal(stdout, "$ apt-get update && apt-get install -y perl\n");
  });

  test("a compiler that cannot link statically is not enough for the images, and all right without them", () => {
    const programs = { ...complete, cc: "echo libc.a", dnf: "" };
    assert.equal(install(programs, ["--dry-run"]).stdout, "$ dnf install -y glibc-static\n");
    assert.equal(install(programs, ["--local"]).stdout, "");
    const failed = install({ ...programs, dnf: "exit 1" }, []);
    assert.equal(failed.status, 3);
  });

  test("diff, which kubectl runs, comes with what else the cluster needs, and not without a cluster", () => {
    const programs = { ...complete, diff: null, cc: "echo libc.a", "apt-get": "" };
    assert.equal(install(programs, ["--dry-run"]).stdout, "$ apt-get update && apt-get install -y libc6-dev diffutils\n");
    assert.equal(install(programs, ["--local"]).stdout, "");
    const { status, stderr } = install({ ...complete, diff: null }, []);
    assert.deepEqual({ status, stderr }, { status: 3, stderr: "Neither apt-get nor dnf is here: install these yourself (missing: diffutils)\n" });
  });

  test("where nothing is missing it does nothing", () => {
    const { status, stdout, calls } = install({ ...complete, "apt-get": "", dnf: "" }, []);
    assert.deepEqual({ status, stdout, calls }, { status: 0, stdout: "", calls: [] });
  });

  for (const [version, enough] of Object.entries({ "v3.19.0+g3d8990f": false, "v4.0.0": true, "v4.3": true, "v10.1.0": true })) {
    test(`helm ${version} is ${enough ? "new enough" : "too old, which one line reports"}`, () => {
      const { stdout } = install({ ...complete, helm: `echo ${version}` }, ["--dry-run"]);
      if (enough) assert.equal(stdout, "");
      else assert.match(stdout, /^helm v3\.19\.0\+g3d8990f is too old: .*\n\$ curl -fL https:\/\/get\.helm\.sh\/.*\n$/);
    });
  }

  test("run again it has nothing left to do", () => {
    const put = (name) => `echo "#!${bash}" > "$HOME/bin/${name}"; chmod +x "$HOME/bin/${name}"`;
    const packages = ["make", "perl"].map(put).join("\n");
    const fake = machine({ cc: "", "apt-get": packages, curl: `cat << 'END'\n${put("rustup")}\nEND` });
    assert.equal(fake.run("install_requirements.sh", ["--local"]).status, 0);
    const first = fake.calls();
    assert.deepEqual(first.slice(0, 3), ["apt-get update", "apt-get install -y make perl", first[2]]);
    assert.match(first[2], /^curl .*sh\.rustup\.rs/);
    const { status, stdout } = fake.run("install_requirements.sh", ["--local"]);
    assert.deepEqual({ status, stdout, calls: fake.calls() }, { status: 0, stdout: "", calls: first });
  });
});

describe("the tools for the cluster", () => {
  const bin = (fake) => join(fake.folder, ".local/bin");

  test("come from their projects, with checksums, and only once", (t) => {
    const fake = machine({ ...build, curl: curl(releases(t, bash)) });
    const { status, stdout, stderr } = fake.run("install_requirements.sh");
    assert.deepEqual({ status, stderr }, { status: 0, stderr: "" });
    assert.deepEqual(readdirSync(bin(fake)).sort(), ["helm", "kubectl", "minikube"]);
    for (const name of readdirSync(bin(fake))) accessSync(join(bin(fake), name), constants.X_OK);
    assert.match(readFileSync(join(bin(fake), "helm"), "utf8"), /v4\.3\.1/);
    assert.equal(lines(stdout).at(-1), `add ${bin(fake)} to your PATH, to use what is installed there by hand`);

    const calls = fake.calls();
    assert.deepEqual(
      calls.map((call) => call.split(" ").at(-1)),
      Object.values(addresses).flatMap((address) => [`${address}.sha256`, address]),
    );
    assert.equal(fake.run("install_requirements.sh").stdout, "");
    assert.deepEqual(fake.calls(), calls);
  });

  test("go into HERALD_BIN, with no advice about a PATH that contains it", (t) => {
    const fake = machine({ ...build, curl: curl(releases(t, bash)) });
    const variables = { HERALD_BIN: join(fake.folder, "tools"), PATH: `${fake.bin}:${join(fake.folder, "tools")}` };
    const { status, stdout } = fake.run("install_requirements.sh", [], "linux-gnu", variables);
    assert.equal(status, 0);
    assert.deepEqual(readdirSync(variables.HERALD_BIN).sort(), ["helm", "kubectl", "minikube"]);
    assert.doesNotMatch(stdout, /PATH/);
  });

  test("a helm that is too old stays, and the new one goes before it", (t) => {
    const fake = machine({ ...complete, helm: "echo v3.19.0", curl: curl(releases(t, bash)) });
    assert.equal(fake.run("install_requirements.sh").status, 0);
    assert.deepEqual(readdirSync(bin(fake)), ["helm"]);
    assert.match(readFileSync(join(fake.bin, "helm"), "utf8"), /v3\.19/);
    assert.equal(fake.run("install_requirements.sh").stdout, "");
  });

  test("where there is no sha256sum, as on macOS, shasum is used", (t) => {
    const shasum = `[ "$*" = "-a 256" ] && exec ${which("sha256sum") || `${which("shasum")} -a 256`}`;
    const fake = machine({ ...build, sha256sum: null, shasum, curl: curl(releases(t, bash)) });
    assert.equal(fake.run("install_requirements.sh").status, 0);
    assert.deepEqual(readdirSync(bin(fake)).sort(), ["helm", "kubectl", "minikube"]);
  });

  for (const name of ["minikube", "helm"]) {
    test(`a ${name} with a wrong checksum is not installed`, (t) => {
      const web = releases(t, bash);
      writeFileSync(join(web, basename(addresses[name])), "#!/bin/sh\necho evil\n");
      const fake = machine({ ...complete, [name]: null, curl: curl(web) });
      const { status, stderr } = fake.run("install_requirements.sh");
      assert.equal(status, 3);
      assert.equal(stderr, `the checksum of ${addresses[name]} is not the published one: ${name} is not installed\n`);
      assert.deepEqual(readdirSync(bin(fake)), []);
    });

    test(`without the internet it is one sentence that names ${name}`, () => {
      const fake = machine({ ...complete, [name]: null, curl: curl("/no/such/folder") });
      const { status, stderr } = fake.run("install_requirements.sh");
      assert.equal(status, 3);
      assert.equal(stderr, `cannot fetch ${addresses[name]}.sha256: curl: (6) Could not resolve host\n`);
      assert.deepEqual(readdirSync(bin(fake)), []);
    });
  }

  test("two runs at once do not take each other's downloads away", async (t) => {
    // The first run's first download waits for the second run's end.
    const waits = 'mkdir "$HOME/waits" 2> /dev/null && while [ ! -e "$HOME/go" ]; do sleep 0.05; done';
    const fake = machine({ ...build, curl: `${waits}\n${curl(releases(t, bash))}` });
    const first = fake.start("install_requirements.sh");
    while (!existsSync(join(fake.folder, "waits"))) await pause(20);
    const second = await fake.start("install_requirements.sh").ended;
    assert.deepEqual({ status: second.status, stderr: second.stderr }, { status: 0, stderr: "" });
    assert.ok(readdirSync(bin(fake)).some((name) => name.startsWith(".new.")), "the first run's folder");
    writeFileSync(join(fake.folder, "go"), "");
    const { status, stderr } = await first.ended;
    assert.deepEqual({ status, stderr }, { status: 0, stderr: "" });
    assert.deepEqual(readdirSync(bin(fake)).sort(), ["helm", "kubectl", "minikube"]);
  });

  test("a folder for the tools that cannot be written is one sentence that names it", () => {
    const fake = machine({ ...build, curl: "exit 6" });
    writeFileSync(join(fake.folder, "tools"), "");
    const { status, stderr } = fake.run("install_requirements.sh", [], "linux-gnu", { HERALD_BIN: join(fake.folder, "tools") });
    assert.equal(status, 3);
    assert.match(stderr, new RegExp(`^cannot write into ${fake.folder}/tools: .*\\n$`));
  });

  test("a connection that breaks before the program is there leaves nothing", (t) => {
    const web = releases(t, bash);
    rmSync(join(web, basename(addresses.kubectl)));
    const fake = machine({ ...complete, kubectl: null, curl: curl(web) });
    const { status, stderr } = fake.run("install_requirements.sh");
    assert.equal(status, 3);
    assert.match(stderr, new RegExp(`cannot fetch ${addresses.kubectl}\n$`));
    assert.deepEqual(readdirSync(bin(fake)), []);
  });

  test("an empty checksum fits nothing", (t) => {
    const web = releases(t, bash);
    writeFileSync(join(web, "kubectl.sha256"), "");
    const { status } = install({ ...complete, kubectl: null, curl: curl(web) }, []);
    assert.equal(status, 3);
  });
});
