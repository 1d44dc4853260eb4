// Values that operators set, on a real cluster: two releases in one namespace, live in a browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, describe, test } from "node:test";
import { startNginx, withoutNginx } from "../ingress/support/nginx.js";
import { launch, texts, until } from "../page/browser.js";
import { apply, helm, json, kubectl, path, run } from "./cluster.js";
import { startRegistry } from "./registry.js";

const skip = process.env.HERALD_DISPOSABLE_CLUSTER === "1" ? withoutNginx() : "HERALD_DISPOSABLE_CLUSTER is not 1";
const NAMESPACE = "operators";
const LOGIN = { user: "herald", password: "a password" };
const [FIRST, SECOND] = ["first", "second"];
const HEADER = "From a Secret";
/** A label of the node, which nothing else has. */
const POOL = "herald.test/pool";

describe("the values of operators", { skip }, () => {
  const endings = [];
  const shared = { after: (act) => endings.push(act) };
  let browser;
  let registry;
  let images;
  let node;

  before(async () => {
    browser = await launch(["--ignore-certificate-errors"]);
    endings.push(() => browser.close());
    node = json("get", "nodes").items[0].metadata.name;
    const lines = run("cargo", ["xtask", "images", "--load"]).stdout.matchAll(/^herald\/(\w+):([0-9a-f]{16}) (.+)$/gm);
    images = Object.fromEntries([...lines].map(([, service, tag, archive]) => [service, { tag, archive }]));
    registry = await startRegistry(shared, images.consumer.archive, LOGIN);
    kubectl("create", "namespace", NAMESPACE);
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted");
    endings.push(() => kubectl("delete", "namespace", NAMESPACE));
    endings.push(() => kubectl("label", "node", node, `${POOL}-`));
    const login = [`--docker-server=${registry.host}`, `--docker-username=${LOGIN.user}`, `--docker-password=${LOGIN.password}`];
    kubectl("create", "secret", "docker-registry", "registry-login", "--namespace", NAMESPACE, ...login);
    kubectl("create", "secret", "generic", "header", "--namespace", NAMESPACE, `--from-literal=header=${HEADER}`);
    // What gives each LoadBalancer an address.
    const tunnel = spawn("minikube", ["tunnel", "--profile", "minikube"], { stdio: "ignore" });
    const ended = once(tunnel, "exit");
    endings.push(async () => {
      tunnel.kill("SIGTERM");
      await ended;
    });
  });
  after(async () => {
    for (const end of endings.toReversed()) await end();
  });

  /** Installs a release. Its producer's image is in the cluster, its consumer's in the registry alone. */
  function install(name, consumer) {
    const values = {
      imagePullSecrets: [{ name: "registry-login" }],
      kafka: { topicName: `operators.${name}`, topicConfig: { "retention.ms": "3600000" } },
      producer: { image: { repository: "herald/producer", tag: images.producer.tag, pullPolicy: "Never" } },
      consumer: { service: { name: "", type: "LoadBalancer" }, ...consumer },
      configmap: { data: { INTERVAL_MIN: "500ms", INTERVAL_MAX: "1s" } },
    };
    const args = ["--kube-context", "minikube", "install", name, path("helm"), "--namespace", NAMESPACE, "--values", "-"];
    run("helm", args, { input: JSON.stringify(values) });
  }

  const selector = (name) => ["--namespace", NAMESPACE, "--selector", `app.kubernetes.io/instance=${name},app.kubernetes.io/component=consumer`];
  const pod = (name) => json("get", "pods", ...selector(name)).items[0];
  const service = (name) => json("get", "services", ...selector(name)).items[0];

  /** The address of a release's Service, once it has one and the release runs. */
  async function address(name) {
    // Not by a command that waits: the registry answers from this process.
    const isReady = () => pod(name)?.status.conditions?.some(({ type, status }) => type === "Ready" && status === "True");
    await until(`the consumer of ${name} is ready`, isReady, 120_000);
    await until(`the Service of ${name} has an address`, () => service(name).status.loadBalancer.ingress?.[0].ip, 60_000);
    const { status, spec } = service(name);
    return `${status.loadBalancer.ingress[0].ip}:${spec.ports[0].port}`;
  }

  /** Opens the page and waits for two new messages; returns the page's own header. */
  async function live(url, picture) {
    const page = await browser.newPage({ viewport: { width: 900, height: 600 }, ignoreHTTPSErrors: true });
    try {
      await page.goto(url);
      await until("the page is live", async () => (await page.locator("#state").textContent()) === "Live");
      const had = (await texts(page)).length;
      await until("more messages", async () => (await texts(page)).length > had + 1, 60_000);
      await page.screenshot({ path: `${process.env.HERALD_SCREENSHOTS}/${picture}.png` });
      return await page.locator("h2#custom_header").textContent();
    } finally {
      await page.close();
    }
  }

  test("a pull secret, a node selector, a variable from a Secret, a LoadBalancer", async () => {
    const header = { name: "CUSTOM_HEADER", valueFrom: { secretKeyRef: { name: "header", key: "header" } } };
    const image = { repository: `${registry.host}/herald/consumer`, tag: images.consumer.tag, pullPolicy: "Always" };
    install(FIRST, { image, nodeSelector: { [POOL]: "browsers" }, extraEnv: [header] });
    const scheduled = () => pod(FIRST).status.conditions?.find(({ type }) => type === "PodScheduled");
    await until("no node fits", () => scheduled()?.reason === "Unschedulable", 60_000);
    assert.match(scheduled().message, /didn't match Pod's node affinity\/selector/);
    kubectl("label", "node", node, `${POOL}=browsers`);
    assert.equal(await live(`http://${await address(FIRST)}`, "values-first"), HEADER);
    assert.equal(pod(FIRST).spec.nodeName, node);
    assert.ok(registry.pulls > 0, "the image comes from the registry");
  });

  test("without the pull secret the image is not pulled", async () => {
    const rejected = registry.rejected;
    const pod = {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name: "no-login", namespace: NAMESPACE },
      spec: {
        securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
        containers: [
          {
            name: "consumer",
            image: `${registry.host}/herald/consumer:${images.consumer.tag}`,
            imagePullPolicy: "Always",
            securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } },
          },
        ],
      },
    };
    apply(pod);
    const waits = () => json("get", "pod", "no-login", "--namespace", NAMESPACE).status.containerStatuses?.[0].state.waiting?.reason;
    await until("the kubelet gives up", () => ["ErrImagePull", "ImagePullBackOff"].includes(waits()), 60_000);
    assert.ok(registry.rejected > rejected);
    kubectl("delete", "pod", "no-login", "--namespace", NAMESPACE, "--wait=false");
  });

  test("a second release in the same namespace, by its image's digest, below a path behind nginx", async (t) => {
    const image = { repository: `${registry.host}/herald/consumer`, digest: registry.digest };
    install(SECOND, { image });
    const proxy = await startNginx(t, [await address(SECOND)], {}, "prefix.conf");
    assert.equal(await live(`${proxy.url}/tools/herald`, "values-second"), "Customized with a configmap!");
    assert.ok(pod(SECOND).spec.containers[0].image.endsWith(`@${registry.digest}`));
    // And the first one is as it was.
    assert.equal(await live(`http://${await address(FIRST)}`, "values-first"), HEADER);
    const names = json("get", "services", "--namespace", NAMESPACE).items.map(({ metadata }) => metadata.name);
    assert.deepEqual(names.sort(), ["first-herald-consumer", "second-herald-consumer"]);
    for (const name of [FIRST, SECOND]) helm("uninstall", name, "--namespace", NAMESPACE, "--wait");
    const left = () => json("get", "all,configmaps,networkpolicies,poddisruptionbudgets", "--namespace", NAMESPACE).items;
    // Pods drain for a while.
    await until("nothing is left", () => left().every(({ metadata }) => metadata.name === "kube-root-ca.crt"), 60_000);
  });
});
