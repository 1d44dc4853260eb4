// ./setup.sh on a real minikube: from nothing, again, after a change, and after somebody broke something.

import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { gunzipSync as gunzip, gzipSync as gzip } from "node:zlib";
import { launch, texts, until } from "../page/browser.js";
import { environments, helm, interrupted, json, kubectl, path, pods, releases, run, setup } from "./cluster.js";

// It deletes the cluster first, so it never runs in one that may be somebody's own.
const skip = process.env.HERALD_DISPOSABLE_CLUSTER === "1" ? false : "HERALD_DISPOSABLE_CLUSTER is not 1";
const [byDefault, dev, prod] = environments;

describe("./setup.sh", { skip }, () => {
  let browser;
  before(async () => (browser = await launch()));
  after(async () => {
    run("./kill_port_forward.sh", []);
    await browser?.close();
  });

  /** Opens an environment's page and waits for a message that is made now. */
  async function live(environment, name) {
    const page = await browser.newPage({ viewport: { width: 900, height: 600 } });
    try {
      await page.goto(environment.url);
      const topic = `Kafka Topic: ${environment.topic}`;
      await until(topic, async () => (await page.locator("h1#env").textContent()) === topic);
      const before = (await texts(page)).length;
      await until(`a message on ${environment.url}`, async () => (await texts(page)).length > before, 60_000);
      assert.match((await texts(page)).at(-1), new RegExp(`^Hello world from ${environment.name} producer - `));
      if (name) await page.screenshot({ path: `${process.env.HERALD_SCREENSHOTS}/${name}.png` });
      return await page.locator("h2#custom_header").textContent();
    } finally {
      await page.close();
    }
  }

  test("from nothing to three live pages", async () => {
    run("minikube", ["delete", "--all"]);
    // What driver none keeps on this machine.
    rmSync("/tmp/hostpath-provisioner", { recursive: true, force: true });
    const { stdout, seconds } = setup();
    assert.match(stdout, /^in all +[0-9.]+ s$/m, "each phase's seconds are printed");
    console.log(`from nothing: ${seconds.toFixed(0)} s\n${stdout.match(/^minikube +[0-9.]+ s[^]*?^in all.*$/m)?.[0]}`);
    for (const environment of environments) {
      const header = await live(environment, `cluster-${environment.name}`);
      assert.equal(header, environment.custom_header);
    }
  });

  for (const { name, release, namespace } of environments) {
    test(`helm test reads a live message in ${name}`, () => {
      const { stdout } = helm("test", release, "--namespace", namespace, "--logs");
      assert.match(stdout, new RegExp(`Hello world from ${name} producer`));
    });
  }

  test("every namespace takes restricted pods only, since the cluster is Herald's own", () => {
    for (const name of ["default", "dev", "prod", "kafka"]) {
      const { labels } = json("get", "namespace", name).metadata;
      assert.equal(labels["pod-security.kubernetes.io/enforce"], "restricted", name);
    }
  });

  test("again, it changes nothing and takes less than 15 seconds", async () => {
    const had = [releases(), pods()];
    const { stdout, seconds } = setup();
    console.log(`again: ${seconds.toFixed(1)} s`);
    assert.deepEqual([releases(), pods()], had);
    for (const { name } of environments) assert.match(stdout, new RegExp(`^${name}: nothing to change$`, "m"));
    assert.ok(seconds < 15, `${seconds} s`);
  });

  test("a changed CUSTOM_HEADER of dev restarts dev's consumer and nothing else", async () => {
    const values = path("helm/values-dev.yaml");
    const original = readFileSync(values, "utf8");
    const had = { releases: releases(), pods: pods() };
    try {
      writeFileSync(values, original.replace("Hello World Dev!", "Hello again, Dev!"));
      setup("dev");
      assert.equal(await live(dev), "Hello again, Dev!");
      const { [dev.release]: revision, ...others } = releases();
      const { [dev.release]: before, ...same } = had.releases;
      assert.equal(revision, before + 1);
      assert.deepEqual(others, same);
      const now = pods();
      const gone = Object.keys(had.pods).filter((name) => !(name in now));
      assert.equal(gone.length, 1, String(gone));
      assert.match(gone[0], /^dev\/.*-consumer-/);
    } finally {
      writeFileSync(values, original);
      setup("dev");
    }
    assert.equal(await live(dev), "Hello World Dev!");
  });

  test("what somebody deleted is put back", async () => {
    const { release, namespace } = dev;
    kubectl("delete", "deployment", "--namespace", namespace, "--selector", `app.kubernetes.io/instance=${release}`);
    const { stdout } = setup("dev");
    assert.match(stdout, /^dev: the cluster has something else than was installed$/m);
    await live(dev);
  });

  test("a topic that is gone is declared anew", async () => {
    const topics = ["--bootstrap-server", "localhost:9092", "--topic", prod.topic, "--delete"];
    kubectl("exec", "--namespace", "kafka", "my-cluster-kafka-0", "--", "/opt/kafka/bin/kafka-topics.sh", ...topics);
    await until("setup.sh to see it", () => /^prod: its consumer cannot read the topic$/m.test(setup("prod").stdout), 120_000);
    await live(prod);
  });

  test("an upgrade that was interrupted does not lock the release", async () => {
    const { release, namespace } = dev;
    const secrets = json("get", "secrets", "--namespace", namespace, "--selector", `owner=helm,name=${release},status=deployed`);
    const [last] = secrets.items;
    // As helm leaves it when it is ended between its first and its last word.
    const revision = Number(last.metadata.labels.version) + 1;
    const stored = JSON.parse(gunzip(Buffer.from(Buffer.from(last.data.release, "base64").toString(), "base64")));
    stored.version = revision;
    stored.info.status = "pending-upgrade";
    const data = Buffer.from(gzip(JSON.stringify(stored)).toString("base64")).toString("base64");
    const secret = {
      apiVersion: "v1",
      kind: "Secret",
      type: last.type,
      metadata: {
        name: `sh.helm.release.v1.${release}.v${revision}`,
        namespace,
        labels: { ...last.metadata.labels, version: String(revision), status: "pending-upgrade" },
      },
      data: { release: data },
    };
    run("kubectl", ["--context", "minikube", "create", "--filename", "-"], { input: JSON.stringify(secret) });
    assert.match(setup("dev").stdout, /^dev: its last revision is pending-upgrade$/m);
    await live(dev);
  });

  test("another context of kubectl stays the current one, and one line says so", () => {
    const use = (context) => run("kubectl", ["config", "use-context", context]);
    run("kubectl", ["config", "set-context", "elsewhere", "--cluster=elsewhere"]);
    use("elsewhere");
    try {
      const { stdout } = setup("dev");
      assert.match(stdout, /^dev: nothing to change$/m);
      assert.equal(run("kubectl", ["config", "current-context"]).stdout.trim(), "elsewhere");
      assert.match(stdout, /current context stays "elsewhere"; Herald goes to "minikube"$/m);
    } finally {
      use("minikube");
      run("kubectl", ["config", "delete-context", "elsewhere"]);
    }
  });

  test("a stopped minikube is started, and the pages live again with what they had", async () => {
    run("minikube", ["stop"]);
    const doctor = run("cargo", ["xtask", "doctor"], { fails: true });
    assert.match(doctor.stdout, /^WRONG {2}the cluster "minikube": it is stopped, or a part of it is$/m);
    const { stdout, seconds } = setup();
    console.log(`after minikube stop: ${seconds.toFixed(0)} s`);
    assert.match(stdout, /^minikube: started$/m);
    await live(byDefault);
    await live(prod);
  });

  const long = process.env.HERALD_TEST_LONG ? false : "it takes minutes (HERALD_TEST_LONG)";
  test("Ctrl-C in any phase ends it at once, and the next run mends what it left", { skip: long }, async () => {
    for (const phase of ["minikube", "images", "load", "kafka", "releases", "pods"]) {
      // So that every phase has something to do.
      run("cargo", ["xtask", "down"]);
      assert.equal(await interrupted(`== ${phase}`), 130, phase);
      setup();
      await live(dev);
    }
  });

  test("status shows every environment, doctor finds nothing wrong, logs shows what is said", () => {
    const status = run("cargo", ["xtask", "status"]).stdout;
    for (const { name, release, topic, url } of environments) {
      assert.match(status, new RegExp(`^${name} +${release} \\d+ +2/2 +herald/consumer:[0-9a-f]{16} +${topic} [1-9]\\d* +\\d+ +${url} answers$`, "m"));
    }
    assert.match(run("cargo", ["xtask", "doctor"]).stdout, /^nothing is wrong$/m);
    const said = run("cargo", ["xtask", "logs", "dev", "--no-follow"]).stdout;
    assert.match(said, /Sent: Hello world from dev producer/);
    assert.match(said, /Received: Hello world from dev producer/);
  });

  test("doctor names a pod that cannot run and a page that nobody forwards, each with a remedy", () => {
    const { release, namespace } = dev;
    const selector = `app.kubernetes.io/instance=${release},app.kubernetes.io/component=consumer`;
    kubectl("scale", "deployment", "--namespace", namespace, "--selector", selector, "--replicas=0");
    run("cargo", ["xtask", "forward", "--stop", "prod"]);
    kubectl("wait", "pods", "--for=delete", "--timeout=60s", "--namespace", namespace, "--selector", selector);
    const { stdout } = run("cargo", ["xtask", "doctor"], { fails: true });
    assert.match(stdout, new RegExp(`^WRONG {2}page ${prod.url}: nobody forwards it\n +-> cargo xtask forward --background prod$`, "m"));
    assert.match(stdout, /^WRONG {2}release hello-world-dev: .*\n +-> cargo xtask up dev$/m);
    setup();
    assert.match(run("cargo", ["xtask", "doctor"]).stdout, /^nothing is wrong$/m);
  });

  test("down takes one environment away, and setup.sh brings it back with its history", async () => {
    run("cargo", ["xtask", "down", "dev"]);
    assert.deepEqual(Object.keys(releases()).sort(), [byDefault.release, prod.release].sort());
    assert.deepEqual(Object.keys(pods()).filter((name) => name.startsWith("dev/")), []);
    setup("dev");
    await live(dev);
  });
});
