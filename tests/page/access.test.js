/** Tokens in a browser: client.js with a function that returns them, signing in, and pages of other sites. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { accessOptions, claims, token } from "../clients/support/tokens.js";
import { launch, missing, texts, until } from "./browser.js";
import { absent, atEnd, startConsumer } from "./consumer.js";
import { address, newTopic } from "./kafka.js";

const skip = missing(absent ?? (address ? undefined : "HERALD_TEST_KAFKA does not name a Kafka"));

let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

/** A consumer that wants tokens, and a page of its origin. */
async function setUp(context, options = []) {
  const folder = mkdtempSync(join(tmpdir(), "herald-access-"));
  atEnd(context, () => rmSync(folder, { recursive: true }));
  const topic = await newTopic(context);
  const consumer = await startConsumer(context, { topics: [topic.name], kafka: address, options: [...accessOptions(folder), ...options] });
  const window = await browser.newContext();
  atEnd(context, () => window.close());
  const page = await window.newPage();
  return { topic, consumer, window, page };
}

/** Connects with tokens for as many seconds each, which allow to read these. */
async function connect(page, url, { read, seconds = 3600, transport }) {
  await page.exposeFunction("newToken", () => token(claims({ read, exp: Math.floor(Date.now() / 1000) + seconds })));
  await page.evaluate(
    async ([url, transport]) => {
      const { connect } = await import(`${url}client.js`);
      window.heard = [];
      window.ends = [];
      window.tokens = 0;
      window.transports = new Set();
      window.stream = connect({ url, transport, token: () => ((window.tokens += 1), window.newToken()) });
      window.stream.addEventListener("message", ({ detail }) => window.heard.push(detail.data));
      window.stream.addEventListener("state", ({ detail }) => detail.name === "live" && window.transports.add(detail.transport ?? transport));
      window.stream.addEventListener("gap", ({ detail }) => window.heard.push(detail.reason));
      window.stream.addEventListener("bye", ({ detail }) => window.ends.push(detail.reason));
    },
    [url, transport],
  );
}

const state = (page) => page.evaluate(() => window.stream.state);

for (const transport of ["sse", "websocket"]) {
  test(`when a token expires, the next one continues from the cursor (${transport} preferred)`, { skip }, async (context) => {
    const { topic, consumer, page } = await setUp(context);
    await page.goto(consumer.url);
    await connect(page, consumer.url, { read: ["topic/*"], seconds: 3, transport });
    await until("it is live", async () => (await state(page)).name === "live");
    const texts = Array.from({ length: 60 }, (_, number) => `m${number}`);
    for (const text of texts) {
      await topic.publish(text);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await until("all have come", async () => (await page.evaluate(() => window.heard.length)) >= texts.length);
    assert.deepEqual(await page.evaluate(() => window.heard), texts);
    const ends = await page.evaluate(() => window.ends);
    assert.ok(ends.length >= 1 && ends.every((reason) => reason === "expired"), ends.join());
    assert.ok((await page.evaluate(() => window.tokens)) > ends.length);
    assert.deepEqual(await page.evaluate(() => [...window.transports]), [transport]);
  });
}

test("a page whose token does not allow it is told so, and does not try for ever", { skip }, async (context) => {
  const { consumer, page } = await setUp(context);
  await page.goto(consumer.url);
  await connect(page, consumer.url, { read: ["topic/other"] });
  await until("it has ended", async () => (await state(page)).name === "ended");
  assert.match((await state(page)).reason, /does not allow/);
  const asked = await page.evaluate(() => window.tokens);
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  assert.equal(await page.evaluate(() => window.tokens), asked);
});

test("a token that is refused is replaced by the next one", { skip }, async (context) => {
  const { topic, consumer, page } = await setUp(context);
  await page.goto(consumer.url);
  const expired = token(claims({ read: ["*"], exp: 1 }));
  const good = token(claims({ read: ["*"] }));
  await page.evaluate(
    async ([url, tokens]) => {
      const { connect } = await import(`${url}client.js`);
      window.heard = [];
      window.stream = connect({ url, token: () => tokens.shift() ?? new Promise(() => {}) });
      window.stream.addEventListener("message", ({ detail }) => window.heard.push(detail.data));
      window.stream.addEventListener("state", ({ detail }) => detail.name === "live" && window.transports.add(detail.transport ?? transport));
    },
    [consumer.url, [expired, good]],
  );
  await until("it is live", async () => (await state(page)).name === "live");
  await topic.publish("after");
  await until("it has come", async () => (await page.evaluate(() => window.heard)).includes("after"));
});

/** The example of signing in, with a secret of its own; returns its address and the options of a consumer that knows the secret. */
async function startSignIn(context) {
  const folder = mkdtempSync(join(tmpdir(), "herald-sign-in-"));
  const keys = join(folder, "keys.json");
  writeFileSync(keys, JSON.stringify({ keys: [{ kty: "oct", alg: "HS256", k: SECRET.toString("base64url") }] }));
  const example = fileURLToPath(new URL("../../examples/sign-in.mjs", import.meta.url));
  const child = spawn(process.execPath, [example, "0"], { env: { TOKEN_KEYS: keys }, stdio: ["ignore", "pipe", "inherit"] });
  atEnd(context, () => rmSync(folder, { recursive: true }));
  atEnd(context, () => child.kill());
  const [line] = await once(child.stdout, "data");
  return { signIn: /http:\S+/.exec(line)[0], options: ["--jwt-keys", keys, "--jwt-cookie", "__Host-herald"] };
}

const SECRET = Buffer.alloc(32, "herald");

test("the page continues once its visitor has signed in, again after a token has expired", { skip }, async (context) => {
  const { signIn, options } = await startSignIn(context);
  const topic = await newTopic(context);
  const consumer = await startConsumer(context, { topics: [topic.name], kafka: address, options });
  const window = await browser.newContext();
  atEnd(context, () => window.close());
  const [page, form] = [await window.newPage(), await window.newPage()];
  // A cookie belongs to a host, on all of its ports.
  const url = consumer.url.replace("127.0.0.1", "localhost");
  await page.goto(url);
  const shows = (state) => until(`the page shows ${state}`, async () => (await page.locator("#state").textContent()).startsWith(state), 40_000);
  await shows("Not signed in");
  const send = async (name, password) => {
    await form.goto(signIn);
    await form.fill("[name=name]", name);
    await form.fill("[name=password]", password);
    await Promise.all([form.waitForNavigation(), form.click("button:not([name])")]);
    return form.locator("[role=status]").textContent();
  };

  for (const [name, password] of [["ada", "hopper"], ["nobody", "lovelace"], ["toString", "x"]]) {
    assert.equal(await send(name, password), "The name or the password is wrong.");
  }
  const foreign = { method: "POST", headers: { origin: "http://localhost:1" }, body: "name=ada&password=lovelace" };
  assert.equal((await fetch(signIn, foreign)).status, 403);
  // One that goes away in the middle of its request.
  const cut = connectTcp(new URL(signIn).port, "127.0.0.1");
  cut.end(`POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: ${signIn}\r\nContent-Length: 100\r\n\r\nabc`);
  await once(cut.resume(), "close");

  assert.match(await send("ada", "lovelace"), /^Signed in as ada/);
  await shows("Live");
  await topic.publish("for those who have signed in");
  await until("it is shown", async () => (await texts(page)).some((text) => text.includes("for those who")));

  // Another page with a token for seconds.
  const [head, payload] = [{ alg: "HS256" }, claims({ read: ["*"], exp: Math.floor(Date.now() / 1000) + 10 })].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  const value = `${head}.${payload}.${createHmac("sha256", SECRET).update(`${head}.${payload}`).digest("base64url")}`;
  await window.addCookies([{ name: "__Host-herald", value, domain: "localhost", path: "/", secure: true }]);
  await page.reload();
  await shows("Live");
  await shows("Not signed in");
  await topic.publish("while nobody was signed in");
  assert.match(await send("ada", "lovelace"), /^Signed in as ada/);
  await shows("Live");
  await until("it is shown", async () => (await texts(page)).filter((text) => text.includes("while nobody")).length === 1);

  await form.goto(signIn);
  await Promise.all([form.waitForNavigation(), form.click("button[name=out]")]);
  await page.reload();
  await shows("Not signed in");
});

/** An empty page of another origin. A browser sends the cookies of a host to all of its ports, and may keep those of other sites back. */
async function otherOrigin(context, host) {
  const server = createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>other"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  atEnd(context, () => server.close());
  return `http://${host}:${server.address().port}`;
}

test("a page of another origin reads nothing with the cookie of its visitor", { skip }, async (context) => {
  const { consumer, window, page } = await setUp(context);
  // Chromium takes a cookie with the prefix from an address of this machine, although it has no TLS.
  const value = token(claims({ read: ["*"] }));
  await window.addCookies([{ name: "__Host-herald", value, domain: "127.0.0.1", path: "/", secure: true, sameSite: "None" }]);
  await page.goto(consumer.url);
  assert.equal(await page.evaluate(() => fetch("/messages").then(({ status }) => status)), 200, "the visitor may");
  for (const host of ["localhost", "127.0.0.1"]) {
    await page.goto(await otherOrigin(context, host));
    const outcomes = await page.evaluate(async (url) => {
      const source = new EventSource(`${url}events`, { withCredentials: true });
      const events = new Promise((resolve) => ((source.onopen = () => resolve("open")), (source.onerror = () => resolve("refused"))));
      const socket = new WebSocket(`${url.replace("http", "ws")}ws`);
      const frames = new Promise((resolve) => ((socket.onmessage = () => resolve("open")), (socket.onclose = () => resolve("refused"))));
      const fetched = fetch(`${url}messages`, { credentials: "include" }).then(() => "open", () => "refused");
      return Promise.all([events, frames, fetched]);
    }, consumer.url);
    assert.deepEqual(outcomes, ["refused", "refused", "refused"], host);
  }
});

test("a page of an origin that is listed reads with a cookie, and with a token", { skip }, async (context) => {
  const origin = await otherOrigin(context, "127.0.0.1");
  const { consumer, window, page } = await setUp(context, ["--allowed-origins", origin]);
  await page.goto(origin);
  const value = token(claims({ read: ["*"] }));
  const ask = (init) => page.evaluate(([url, init]) => fetch(`${url}messages`, init).then(({ status }) => status), [consumer.url, init]);
  assert.equal(await ask({}), 401);
  assert.equal(await ask({ headers: { authorization: `Bearer ${value}` } }), 200);
  await window.addCookies([{ name: "__Host-herald", value, domain: "127.0.0.1", path: "/", secure: true, sameSite: "None" }]);
  assert.equal(await ask({ credentials: "include" }), 200);
  assert.equal(await ask({}), 401);
});

test("only a page of a listed origin may show the page in a frame", { skip }, async (context) => {
  const listed = await otherOrigin(context, "127.0.0.1");
  const { consumer, page } = await setUp(context, ["--frame-ancestors", listed]);
  /** The address of what a page of this origin has in a frame, and its heading. */
  const framed = async (origin) => {
    await page.goto(origin);
    const element = await page.evaluateHandle((url) => {
      const frame = Object.assign(document.createElement("iframe"), { src: url });
      return new Promise((resolve) => {
        frame.onload = () => resolve(frame);
        document.body.append(frame);
      });
    }, consumer.url);
    const frame = await element.contentFrame();
    return { url: frame.url(), heading: await frame.evaluate(() => document.querySelector("h1")?.id) };
  };
  assert.deepEqual(await framed(listed), { url: consumer.url, heading: "top" });
  for (const host of ["127.0.0.1", "localhost"]) {
    const { url, heading } = await framed(await otherOrigin(context, host));
    assert.match(url, /^chrome-error:/, "what Chromium shows instead");
    assert.notEqual(heading, "top");
  }
});
