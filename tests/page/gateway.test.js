/** The gateway's page, against a gateway without Kafka that keeps its sessions in memory. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";
import { launch, missing, until } from "./browser.js";

const FILES = new URL("../../services/gateway/src/page/", import.meta.url);
const KINDS = { html: "text/html", css: "text/css", js: "text/javascript" };
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const skip = missing();
let browser;
before(async () => (browser = skip ? null : await launch()));
after(() => browser?.close());

class FakeGateway {
  /** The frames of each session, as texts. */
  frames = new Map();
  sockets = new Set();
  unchanged = 0;
  /** A response to every handshake, and to every request for a document: {status, body}. */
  noSession = null;
  noData = null;

  constructor() {
    this.server = createServer((request, response) => this.#answer(request, response));
    const sockets = new WebSocketServer({ noServer: true });
    this.server.on("upgrade", (request, socket, head) => {
      if (this.noSession) return socket.end(`HTTP/1.1 ${this.noSession.status} No\r\nconnection: close\r\n\r\n`);
      sockets.handleUpgrade(request, socket, head, (ws) => this.#read(ws, new URL(request.url, "http://fake").searchParams.get("session_id")));
    });
  }

  #read(ws, id) {
    this.sockets.add(ws);
    let offset = 0;
    ws.on("message", (data) => {
      const text = String(data);
      if (!text.startsWith("[{")) return ws.send(JSON.stringify({ type: "error", element: null, error: "a frame must be a JSON array" }));
      this.frames.set(id, [...(this.frames.get(id) ?? []), text]);
      ws.send(JSON.stringify({ type: "ack", partition: 0, offset, cursor: `0-${offset++}` }));
      if (JSON.parse(text).at(-1).type === "SESSION_END") ws.close(1000, "the session has ended");
    });
  }

  #document(id) {
    // The same frame again adds nothing.
    const events = [...new Set(this.frames.get(id))].flatMap((text) => JSON.parse(text));
    const time = (type) => events.find((event) => event.type === type)?.timestamp ?? null;
    const children = events.filter(({ type }) => type === "EVENT").sort((a, b) => a.timestamp - b.timestamp);
    return JSON.stringify({ session_id: id, type: "SESSION", start: time("SESSION_START"), end: time("SESSION_END"), children });
  }

  async #answer(request, response) {
    const { pathname, searchParams } = new URL(request.url, "http://fake");
    const id = searchParams.get("session_id");
    if (pathname === "/websocket") return response.writeHead(this.noSession?.status ?? 426).end(this.noSession?.body ?? "");
    if (pathname === "/data") {
      if (this.noData) return response.writeHead(this.noData.status, { "content-type": "application/json" }).end(this.noData.body);
      if (!this.frames.has(id)) return response.writeHead(404, { "content-type": "text/plain" }).end(`no data found for session_id ${id}`);
      const etag = `"${this.frames.get(id).length}"`;
      if (request.headers["if-none-match"] === etag) {
        this.unchanged += 1;
        return response.writeHead(304, { etag }).end();
      }
      return response.writeHead(200, { etag, "content-type": "application/json" }).end(this.#document(id));
    }
    const name = pathname === "/" ? "index.html" : pathname.slice(1);
    const file = await readFile(new URL(name, FILES)).catch(() => null);
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": KINDS[name.split(".").at(-1)], "content-security-policy": POLICY }).end(file);
  }
}

async function setUp(context, { viewport = { width: 1100, height: 800 }, colorScheme = "light" } = {}) {
  const fake = new FakeGateway();
  await new Promise((resolve) => fake.server.listen(0, "127.0.0.1", resolve));
  const window = await browser.newContext({ viewport, colorScheme });
  const complaints = [];
  window.on("weberror", (error) => complaints.push(error.error().message));
  window.on("console", (line) => line.type() === "error" && /Content Security/.test(line.text()) && complaints.push(line.text()));
  context.after(async () => {
    await window.close();
    for (const ws of fake.sockets) ws.terminate();
    fake.server.closeAllConnections();
    fake.server.close();
    assert.deepEqual(complaints, []);
  });
  const page = await window.newPage();
  await page.goto(`http://127.0.0.1:${fake.server.address().port}/`);
  return { fake, page };
}

const press = (page, name) => page.getByRole("button", { name, exact: true }).click();
const logs = (page, words) => until(`the log has: ${words}`, async () => (await page.locator("#log").textContent()).includes(words));
const shows = (page, selector, words) => until(`${selector} shows ${words}`, async () => (await page.locator(selector).textContent()).includes(words));
const shown = async (page) => JSON.parse(await page.locator("#result").textContent());
const names = async (page) => (await shown(page)).children.map(({ name }) => name);
async function screenshot(page, name) {
  const folder = process.env.HERALD_SCREENSHOTS ?? fileURLToPath(new URL("../../target/screenshots", import.meta.url));
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}
const open = async (page) => {
  await press(page, "Open");
  await shows(page, "#state", "Open");
};

describe("the gateway's page", { skip }, () => {
  test("the document follows the events until the session ends", async (context) => {
    const { fake, page } = await setUp(context);
    assert.match(await page.getByLabel("Session id").inputValue(), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    await open(page);
    await shows(page, "#about", "no events of this session yet");
    await press(page, "Send SESSION_START");
    await logs(page, "Kafka has the frame: partition 0, offset 0.");
    await shows(page, "#about", "Started, with 0 events.");
    await page.getByLabel("Name", { exact: true }).fill("a <b>");
    await page.getByLabel("Timestamp").fill("12.5");
    await press(page, "Send EVENT");
    await shows(page, "#about", "Started, with 1 event.");
    assert.deepEqual((await shown(page)).children, [{ type: "EVENT", timestamp: 12.5, name: "a <b>" }]);
    await until("an unchanged document is not sent again", () => fake.unchanged > 0);
    await press(page, "Send SESSION_END");
    await logs(page, "The session is closed: the session has ended (code 1000).");
    await shows(page, "#about", "From start to end, with 1 event.");
    await shows(page, "#state", "Closed");
    assert.equal(await page.getByRole("button", { name: "Send EVENT" }).isDisabled(), true);
  });

  test("an event that is sent twice is there once, and events out of order are in order", async (context) => {
    const { fake, page } = await setUp(context);
    await open(page);
    await press(page, "Send twice");
    await logs(page, "offset 1.");
    await shows(page, "#about", "with 1 event.");
    const [frames] = fake.frames.values();
    assert.equal(frames.length, 2);
    assert.equal(frames[0], frames[1]);
    await press(page, "Close");
    await logs(page, "The session is closed");
    await press(page, "New id");
    await open(page);
    await press(page, "Send out of order");
    await shows(page, "#about", "Started, with 3 events.");
    assert.deepEqual(await names(page), ["first_event", "middle_event", "last_event"]);
    await screenshot(page, "gateway");
  });

  test("a frame of the client's own is sent as it is, and an invalid one is explained", async (context) => {
    const { fake, page } = await setUp(context);
    await open(page);
    await page.getByLabel("A JSON array of events").fill("{}");
    await press(page, "Send frame");
    await logs(page, "The frame was rejected: a frame must be a JSON array.");
    const frame = '[{"type": "EVENT",  "timestamp": 1, "name": "own", "extra": [1]}]';
    await page.getByLabel("A JSON array of events").fill(frame);
    await press(page, "Send frame");
    await shows(page, "#result", "own");
    assert.deepEqual([...fake.frames.values()], [[frame]]);
  });

  test("what goes wrong is said in words, and the page goes on when it is over", async (context) => {
    const { fake, page } = await setUp(context);
    fake.noSession = { status: 429, body: '{"error":"too many connections per second from this address"}' };
    await press(page, "Open");
    await logs(page, "The session was not opened: too many connections per second from this address.");
    fake.noSession = null;
    fake.noData = { status: 503, body: '{"error":"the database does not answer"}' };
    await open(page);
    await shows(page, "#about", "The document cannot be read: the database does not answer (status 503).");
    fake.noData = null;
    await press(page, "Send EVENT");
    await shows(page, "#about", "with 1 event.");
    for (const ws of fake.sockets) ws.close(1013, "kafka does not accept frames; try again later");
    await logs(page, "Kafka does not accept frames at present; try again later");
    await shows(page, "#state", "Closed");
    await open(page);
  });

  test("it fits a phone, in the dark, and every control has a name", async (context) => {
    const { page } = await setUp(context, { viewport: { width: 360, height: 640 }, colorScheme: "dark" });
    await open(page);
    await press(page, "Send out of order");
    await shows(page, "#about", "Started, with 3 events.");
    const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(content <= window, `${content} > ${window}`);
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(18, 23, 22)");
    const unnamed = await page.evaluate(() =>
      [...document.querySelectorAll("input, textarea, button")].filter((e) => !(e.labels?.[0]?.textContent.trim() || e.textContent.trim())).map((e) => e.id),
    );
    assert.deepEqual(unnamed, []);
    await screenshot(page, "gateway-phone");
  });
});
