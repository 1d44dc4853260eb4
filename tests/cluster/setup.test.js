// ./setup.sh on a real minikube: from nothing, again, after a change, and after somebody broke something.

import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { gunzipSync as gunzip, gzipSync as gzip } from "node:zlib";
import { launch, texts, until } from "../page/browser.js";
import { firstResults } from "../clients/support/rooms.js";
import { counts } from "../page/counts.js";
import { like, metadata, VIDEOS } from "../page/likes.js";
import { address, ended, ORIGINAL, send } from "../page/session.js";
import { WebSocket } from "../page/websocket.js";
import { homedir } from "node:os";
import { apply, environments, helm, interrupted, json, kubectl, path, pods, releases, run, setup } from "./cluster.js";
import { get, withToken } from "./secure.js";

// It deletes the cluster first, so it never runs in one that may be somebody's own.
const skip = process.env.HERALD_DISPOSABLE_CLUSTER === "1" ? false : "HERALD_DISPOSABLE_CLUSTER is not 1";
const [byDefault, dev, prod] = environments;

describe("./setup.sh", { skip }, () => {
  const long = process.env.HERALD_TEST_LONG ? false : "it takes minutes (HERALD_TEST_LONG)";
  let browser;
  before(async () => (browser = await launch()));
  after(async () => {
    run("./kill_port_forward.sh", []);
    await browser?.close();
  });

  /** Opens an environment's page and waits for a message that is made now; `name` is that of a screenshot. */
  async function live(environment, name, cookie) {
    // Chromium does not trust the certificate of --secure; that others do is tested with it.
    const page = await browser.newPage({ viewport: { width: 900, height: 600 }, ignoreHTTPSErrors: true });
    if (cookie) await page.context().addCookies([{ name: "__Host-herald", value: cookie, url: environment.url, secure: true }]);
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

  for (const environment of environments) {
    const { name, namespace, gateway, database_schema: schema } = environment;
    test(`in ${name} a session goes through Kafka into PostgreSQL, and its document comes back`, async () => {
      const data = address(gateway, "/data", ORIGINAL.id);
      const before = await fetch(data);
      assert.deepEqual([before.status, await before.text()], [404, `no data found for session_id ${ORIGINAL.id}`]);
      const { received, code } = await send(WebSocket, gateway, ORIGINAL.id, ORIGINAL.frames);
      assert.deepEqual([received, code], [[], 1000]);
      assert.deepEqual(await ended(gateway, ORIGINAL.id), ORIGINAL.document);
    });

    test(`in ${name} the gateway's role may not write`, () => {
      const { data } = json("get", "secret", "herald-database", "--namespace", namespace);
      const psql = (key, statement) => {
        const url = Buffer.from(data[key], "base64").toString().replace(/@[^/]+/, "@127.0.0.1:5432");
        const exec = ["--context", "minikube", "exec", "--namespace", "postgres", "herald-postgres-0", "--", "psql", url, "--command", statement];
        return run("kubectl", exec, { fails: key === "gateway-url" });
      };
      const statement = `DELETE FROM ${schema}.sessions WHERE false`;
      assert.match(psql("projector-url", statement).stdout, /^DELETE 0$/m);
      assert.match(psql("gateway-url", statement).stderr, /permission denied/);
    });
  }

  /** When each environment's likes were sent, by its name. */
  const liked = {};
  for (const { name, gateway, url, topic_prefix: prefix } of environments) {
    test(`in ${name} foods are counted, and likes reach the topic of interim counts`, async () => {
      await until("foods to be counted", async () => (await counts(gateway)).length > 0, 60_000);
      const ids = (await metadata(gateway)).map((video) => video.unique_identifier);
      assert.deepEqual(ids, VIDEOS);
      for (let number = 0; number < 3; number++) assert.deepEqual(await like(`${gateway}/dev`, VIDEOS[0]), { "new video": VIDEOS[0] });
      liked[name] = Date.now();
      const interim = `${url}/messages?topic=${prefix}one_minute_aggregation_topic.live&key=${VIDEOS[0]}`;
      const counted = async () => (await (await fetch(interim)).json()).messages?.length > 0;
      await until("an interim count", counted, 60_000);
    });
  }

  for (const { name, gateway, url, topic_prefix: prefix } of environments) {
    test(`in ${name} the windows of the likes are closed a minute later, in every room, and all results are equal to Kafka's records`, async () => {
      const topic = `${prefix}one_minute_aggregation_topic`;
      const results = async () => {
        const { messages } = await (await fetch(`${url}/messages?topic=${topic}&key=${VIDEOS[0]}`)).json();
        return messages.map(({ data }) => JSON.parse(data));
      };
      // The three likes may lie in two windows.
      const sum = async () => (await results()).reduce((all, { count }) => all + count, 0);
      await until("the results of three likes", async () => (await sum()) === 3, 120_000);
      const [{ type, video_uid: id, count, start, end }] = await results();
      assert.deepEqual([type, id, end - start], ["1min", VIDEOS[0], 60_000]);
      assert.ok(start <= liked[name] && liked[name] - start < 120_000);
      const opened = await (await fetch(`${gateway}/windows/1min/${start}/${id}/messages`)).json();
      assert.equal(opened.messages.length, count);
      assert.deepEqual(await firstResults(url, [VIDEOS[0]]), [{ id, count: (await results()).at(-1).count }]);
      const { stdout } = run("cargo", ["xtask", "verify", name]);
      assert.equal(stdout.match(/^ {2}equal$/gm)?.length, 2, stdout);
    });
  }

  test("every namespace takes restricted pods only, since the cluster is Herald's own", () => {
    for (const name of ["default", "dev", "prod", "kafka", "postgres"]) {
      const { labels } = json("get", "namespace", name).metadata;
      assert.equal(labels["pod-security.kubernetes.io/enforce"], "restricted", name);
    }
  });

  test("again, it changes nothing and takes less than 30 seconds", async () => {
    const had = [releases(), pods()];
    const { stdout, seconds } = setup();
    console.log(`again: ${seconds.toFixed(1)} s`);
    assert.deepEqual([releases(), pods()], had);
    for (const { name } of environments) assert.match(stdout, new RegExp(`^${name}: nothing to change$`, "m"));
    assert.ok(seconds < 30, `${seconds} s`);
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

  test("a deleted topic is recreated", async () => {
    const topics = ["--bootstrap-server", "localhost:9092", "--topic", prod.topic, "--delete"];
    kubectl("exec", "--namespace", "kafka", "my-cluster-kafka-0", "--", "/opt/kafka/bin/kafka-topics.sh", ...topics);
    await until("setup.sh to see it", () => /^prod: its consumer cannot read the topic$/m.test(setup("prod").stdout), 120_000);
    await live(prod);
  });

  test("--secure turns on TLS and requires tokens in dev, everything works with them, and without it dev is open again", { skip: long }, async (t) => {
    const { stdout } = run("./setup.sh", ["--secure", "dev"]);
    const ca = readFileSync(/^dev: .*trust (\/.*\.crt)/m.exec(stdout)[1]);
    const newToken = (...args) => run("cargo", ["xtask", "token", ...args]).stdout.trim();
    const secured = Object.fromEntries(["url", "gateway"].map((name) => [name, dev[name].replace("http:", "https:")]));
    const page = { ...dev, ...secured };
    const [all, none] = [newToken("--read", "*", "--write", "*"), newToken("--read", "topic/another")];
    for (const url of [`${page.url}/messages`, address(page.gateway, "/data", ORIGINAL.id), `${page.gateway}/aggregated`]) {
      const statuses = [undefined, "made up", none, all].map(async (token) => (await get(url, { ca, token })).status);
      assert.deepEqual(await Promise.all(statuses), [401, 401, 403, 200], url);
      await assert.rejects(get(url, { token: all }), /self-signed certificate/, "nobody trusts it without the file");
      assert.equal((await fetch(url.replace("https:", "http:"))).status, 400);
    }
    const [url, gateway] = await Promise.all([page.url, page.gateway].map((url) => withToken(t, url, { ca, token: all })));
    const { received, code } = await send(WebSocket, gateway, "secured", ORIGINAL.frames);
    assert.deepEqual([received, code], [[], 1000]);
    assert.deepEqual(await ended(gateway, "secured"), { ...ORIGINAL.document, session_id: "secured" });
    const sum = async () => (await counts(gateway)).reduce((all, { count }) => all + count, 0);
    const before = await sum();
    await until("foods to be counted", async () => (await sum()) > before, 60_000);
    assert.deepEqual(await like(`${gateway}/dev`, VIDEOS[1]), { "new video": VIDEOS[1] });
    const interim = `${url}/messages?topic=${dev.topic_prefix}one_minute_aggregation_topic.live&key=${VIDEOS[1]}`;
    await until("an interim count", async () => (await (await fetch(interim)).json()).messages?.length > 0, 60_000);
    const firsts = await firstResults(url, [VIDEOS[0]]);
    assert.equal(firsts[0].id, VIDEOS[0]);
    await live(page, "cluster-secure", all);

    assert.match(run("cargo", ["xtask", "status", "dev"]).stdout, new RegExp(`^ok {5}page ${page.url}: answers$`, "m"));
    assert.match(run("./setup.sh", ["--secure", "dev"]).stdout, /^dev: nothing to change$/m);
    assert.match(setup("dev").stdout, /^dev: the chart, its values or the images changed$/m);
    await live(dev);
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
    apply(secret);
    assert.match(setup("dev").stdout, /^dev: its last revision is pending-upgrade$/m);
    await live(dev);
  });

  test("another context of kubectl stays the current one, and one line reports it", () => {
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

  test("behind a proxy the cluster is reached directly, and doctor reports it", () => {
    const env = { HTTPS_PROXY: "http://127.0.0.1:9", HTTP_PROXY: "http://127.0.0.1:9", NO_PROXY: "localhost" };
    assert.match(run("./setup.sh", ["dev"], { env }).stdout, /^dev: nothing to change$/m);
    const { stdout } = run("cargo", ["xtask", "doctor"], { env });
    assert.match(stdout, /^note {3}HTTPS_PROXY is set: .*xtask goes to the cluster directly$/m);
    assert.match(stdout, /^nothing is wrong$/m);
  });

  test("a cluster created by `up` that holds other releases is deleted only with --yes", () => {
    kubectl("create", "namespace", "theirs");
    try {
      const { stderr } = run("cargo", ["xtask", "down", "--cluster"], { fails: true });
      assert.equal(stderr.trim().split("\n").at(-1), 'error: the cluster "minikube" holds more than Herald: namespace theirs; --yes deletes it all the same');
      assert.equal(Object.keys(releases()).length, 3, "and nothing was ended");
    } finally {
      kubectl("delete", "namespace", "theirs");
    }
  });

  describe("in a cluster that was there before", () => {
    const profile = `${process.env.MINIKUBE_HOME ?? `${homedir()}/.minikube`}/profiles/minikube/config.json`;
    const labels = { "app.kubernetes.io/name": "kafka", "app.kubernetes.io/instance": "my-cluster" };
    const service = (name) => ({
      apiVersion: "v1",
      kind: "Service",
      metadata: { name, namespace: "kafka", labels },
      spec: { selector: { theirs: "yes" }, ports: [{ port: 9092 }] },
    });
    const volume = {
      apiVersion: "v1",
      kind: "PersistentVolumeClaim",
      metadata: { name: "data-theirs", namespace: "kafka", labels },
      spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } },
    };
    let ours;
    before(() => {
      ours = readFileSync(profile, "utf8");
      assert.ok(ours.includes("made-by-herald"), "up has made it");
      writeFileSync(profile, ours.replace("made-by-herald", "made-by-others"));
      apply(service("theirs"));
      apply(volume);
    });
    after(async () => {
      writeFileSync(profile, ours);
      for (const object of ["service/theirs", "service/my-cluster-kafka-bootstrap", "persistentvolumeclaim/data-theirs"]) {
        kubectl("delete", object, "--namespace", "kafka", "--ignore-not-found");
      }
      for (const namespace of ["theirs", "dev"]) kubectl("delete", "namespace", namespace, "--ignore-not-found");
      setup();
      await live(dev);
    });

    test("down --cluster deletes Herald's own Kafka, and nothing of others that looks like it", () => {
      const theirs = () => json("get", "service/theirs", "persistentvolumeclaim/data-theirs", "--namespace", "kafka").items.map((one) => one.metadata.uid);
      const had = theirs();
      const { stdout } = run("cargo", ["xtask", "down", "--cluster"]);
      assert.match(stdout, /^the cluster was there before Herald: it stays$/m);
      assert.deepEqual(theirs(), had);
      const left = json("get", "statefulsets,services,persistentvolumeclaims,configmaps,networkpolicies", "--namespace", "kafka").items;
      const names = left.map(({ metadata }) => metadata.name).filter((name) => name !== "kube-root-ca.crt");
      assert.deepEqual(names.sort(), ["data-theirs", "theirs"]);
      const again = run("cargo", ["xtask", "down", "--cluster"]).stdout;
      assert.match(again, /^there is no Kafka of Herald's in namespace kafka$/m);
      assert.match(again, /^there is no PostgreSQL of Herald's in namespace postgres$/m);
      for (const { namespace } of environments) {
        assert.deepEqual(json("get", "secrets", "--namespace", namespace, "--selector", "app.kubernetes.io/managed-by=herald-xtask").items, []);
      }
    });

    test("a Kafka of others under our names is refused in one sentence, and left as it is", () => {
      apply(service("my-cluster-kafka-bootstrap"));
      const look = () => json("get", "service", "my-cluster-kafka-bootstrap", "--namespace", "kafka").metadata.resourceVersion;
      const had = look();
      const { stderr } = run("./setup.sh", ["dev"], { fails: true });
      assert.equal(
        stderr.trim().split("\n").at(-1),
        "error: namespace kafka has a Kafka that is not Herald's (Service my-cluster-kafka-bootstrap): use it with --kafka HOST:PORT, or remove it",
      );
      assert.equal(look(), had);
    });

    test("--kafka uses a Kafka that exists, in namespaces that others have made and that stay as they are", async () => {
      kubectl("delete", "namespace", "dev", "--ignore-not-found");
      for (const namespace of ["dev", "theirs"]) kubectl("create", "namespace", namespace);
      const kafka = kubectl("kustomize", path("k8s/kafka")).stdout.replaceAll("herald-xtask", "them");
      const theirs = kafka.replaceAll("namespace: kafka", "namespace: theirs").replaceAll("brokers.kafka.svc", "brokers.theirs.svc");
      run("kubectl", ["--context", "minikube", "create", "--filename", "-"], { input: theirs });
      const kafkaOf = ["--kafka", "my-cluster-kafka-bootstrap.theirs.svc.cluster.local:9092"];
      run("./setup.sh", [...kafkaOf, "dev"]);
      await live(dev);
      const { labels } = json("get", "namespace", "dev").metadata;
      assert.deepEqual(Object.keys(labels), ["kubernetes.io/metadata.name"]);
      const { stdout } = run("cargo", ["xtask", "doctor"], { fails: true });
      assert.match(stdout, /^ok {5}dev uses the Kafka at my-cluster-kafka-bootstrap\.theirs\.svc\.cluster\.local:9092$/m);
      run("cargo", ["xtask", "down", "dev"]);
    });
  });

  test("a stopped minikube is started, and the pages live again with what they had", { skip: long }, async () => {
    run("minikube", ["stop"]);
    const { stderr } = run("cargo", ["xtask", "down", "--cluster"], { fails: true });
    assert.match(stderr, /^error: the cluster "minikube" is stopped, so what else it holds cannot be seen; --yes deletes it all the same$/m);
    const doctor = run("cargo", ["xtask", "doctor"], { fails: true });
    assert.match(doctor.stdout, /^WRONG {2}the cluster "minikube": it is stopped, or a part of it is$/m);
    const { stdout, seconds } = setup();
    console.log(`after minikube stop: ${seconds.toFixed(0)} s`);
    assert.match(stdout, /^minikube: started$/m);
    await live(byDefault);
    await live(prod);
  });

  test("a cluster whose making was interrupted is Herald's own all the same", { skip: long }, async () => {
    run("minikube", ["stop"]);
    run("cargo", ["xtask", "down", "--cluster", "--yes"]);
    assert.equal(run("minikube", ["profile", "list"], { fails: true }).stdout.includes("minikube"), false);
    rmSync("/tmp/hostpath-provisioner", { recursive: true, force: true });
    assert.equal(await interrupted("Preparing Kubernetes"), 130);
    setup();
    await live(dev);
    const { labels } = json("get", "namespace", "default").metadata;
    assert.equal(labels["pod-security.kubernetes.io/enforce"], "restricted");
  });

  test("Ctrl-C in any phase ends it at once, and the next run repairs what it left incomplete", { skip: long }, async () => {
    for (const phase of ["minikube", "images", "load", "servers", "releases", "pods"]) {
      // So that every phase has something to do.
      run("cargo", ["xtask", "down"]);
      assert.equal(await interrupted(`== ${phase}`), 130, phase);
      setup();
      await live(dev);
    }
  });

  test("status shows every environment, doctor finds nothing wrong, logs shows the messages", () => {
    const status = run("cargo", ["xtask", "status"]).stdout;
    const images = ["consumer", "gateway", "producer", "projector"].map((name) => `herald/${name}:[0-9a-f]{16}`).join(", ");
    for (const { name, release, topic, url, gateway } of environments) {
      assert.match(status, new RegExp(`^ok {5}release ${release}: revision \\d+$`, "m"));
      assert.match(status, new RegExp(`^ok {5}pods of ${name}: 5/5 ready, ${images}$`, "m"));
      assert.match(status, new RegExp(`^ok {5}topic ${topic}: end offset [1-9]\\d*, connections \\d+$`, "m"));
      assert.match(status, new RegExp(`^ok {5}page ${url}: answers$`, "m"));
      assert.match(status, new RegExp(`^ok {5}session events ${gateway}: answers$`, "m"));
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
    await send(WebSocket, dev.gateway, ORIGINAL.id, ORIGINAL.frames);
    await ended(dev.gateway, ORIGINAL.id);
    run("cargo", ["xtask", "down", "dev"]);
    assert.deepEqual(Object.keys(releases()).sort(), [byDefault.release, prod.release].sort());
    assert.deepEqual(Object.keys(pods()).filter((name) => name.startsWith("dev/")), []);
    setup("dev");
    await live(dev);
    assert.deepEqual(await ended(dev.gateway, ORIGINAL.id), ORIGINAL.document, "and its sessions");
  });
});
