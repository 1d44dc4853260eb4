/** The gateway's pages, against a gateway without Kafka that keeps its sessions in memory. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";
import { launch, missing, until } from "./browser.js";
import { VIDEOS } from "./likes.js";

const FILES = new URL("../../services/gateway/src/page/", import.meta.url);
const PAGES = { "/": "index.html", "/counts": "counts.html", "/likes": "likes.html" };
const KINDS = { html: "text/html", css: "text/css", js: "text/javascript" };
const POLICY =
  "default-src 'none'; script-src 'self' 'sha256-aeYx85mVCNrXH5e4wvlGrh2WclmPOJlfFHEvtnE/2ls='; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
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
  /** The open streams of results, by their path; what each begins with; and a response to every request for one: {status, body}. */
  streams = new Map();
  begins = { "/aggregated/stream": [["snapshot", []]], "/windows/stream": [] };
  noStream = null;
  /** The paths of the likes, and a response to each: {status, body}. */
  likes = [];
  noLikes = null;
  /** The pages that this address does not have. */
  without = [];

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

  /** Sends an event to the newest stream of this path. */
  emit(path, name, data) {
    this.streams.get(path).write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
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
    if (pathname.endsWith("/likes") && request.method === "POST") {
      this.likes.push(pathname);
      if (this.noLikes) return response.writeHead(this.noLikes.status, { "content-type": "application/json" }).end(this.noLikes.body);
      return response.writeHead(200, { "content-type": "application/json" }).end(`{"new video": "${pathname.split("/")[2]}"}`);
    }
    if (pathname === "/videos/metadata") {
      if ([401, 404].includes(this.noLikes?.status)) return response.writeHead(this.noLikes.status).end(this.noLikes.body);
      const titles = ["First video", "Second <b>video</b>"];
      return response.writeHead(200).end(JSON.stringify(VIDEOS.map((id, index) => ({ unique_identifier: id, title: titles[index] }))));
    }
    if (pathname in this.begins) {
      if (this.noStream) return response.writeHead(this.noStream.status).end(this.noStream.body);
      response.writeHead(200, { "content-type": "text/event-stream" }).write("retry: 100\n\n");
      this.streams.set(pathname, response);
      return this.begins[pathname].forEach(([name, data]) => this.emit(pathname, name, data));
    }
    if (this.without.includes(pathname)) return response.writeHead(404).end();
    const name = PAGES[pathname] ?? pathname.slice(1);
    const file = await readFile(new URL(name, FILES)).catch(() => null);
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": KINDS[name.split(".").at(-1)], "content-security-policy": POLICY }).end(file);
  }
}

async function setUp(context, { viewport = { width: 1100, height: 800 }, colorScheme = "light", reducedMotion = "no-preference", path = "/", prepare = () => {} } = {}) {
  const fake = new FakeGateway();
  prepare(fake);
  await new Promise((resolve) => fake.server.listen(0, "127.0.0.1", resolve));
  const window = await browser.newContext({ viewport, colorScheme, reducedMotion });
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
  await page.goto(`http://127.0.0.1:${fake.server.address().port}${path}`);
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

const PHONE = { viewport: { width: 360, height: 640 }, colorScheme: "dark" };
async function fitsAPhone(page) {
  const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= window, `${content} > ${window}`);
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(18, 23, 22)");
}

describe("the page of counts", { skip }, () => {
  const STREAM = "/aggregated/stream";
  const FOODS = [["pie", 36], ["fig <b>", 4], ["apple", 12], ["onion rings with a long name", 12]].map(([food, count]) => ({ count, food }));
  const open = (context, options) => setUp(context, { path: "/counts", prepare: (fake) => (fake.begins[STREAM] = [["snapshot", FOODS]]), ...options });
  const rows = (page) => page.locator("#rows > li").evaluateAll((items) => items.map((item) => item.textContent));
  const changed = (page) => page.locator("#rows > .new .food").allTextContents();

  test("the largest count is first, and what changes moves and is highlighted for a while", async (context) => {
    const { fake, page } = await open(context);
    await shows(page, "#state", "Live");
    await shows(page, "#total", "64");
    assert.deepEqual(await rows(page), ["pie36", "apple12", "onion rings with a long name12", "fig <b>4"]);
    assert.deepEqual(await changed(page), []);
    const widths = await page.locator("rect").evaluateAll((all) => all.map((one) => Number.parseFloat(one.getAttribute("width"))));
    assert.deepEqual(widths.map(Math.round), [100, 33, 33, 11]);
    fake.emit(STREAM, "change", [{ count: 40, food: "fig <b>" }, { count: 1, food: "nut" }]);
    await shows(page, "#total", "101");
    assert.deepEqual(await rows(page), ["fig <b>40", "pie36", "apple12", "onion rings with a long name12", "nut1"]);
    assert.deepEqual(await changed(page), ["fig <b>", "nut"]);
    await screenshot(page, "counts");
    await until("the highlight ends", async () => (await changed(page)).length === 0);
  });

  test("it is live once all rows are there, and says so once", async (context) => {
    const { fake, page } = await open(context, { prepare: (fake) => (fake.begins[STREAM] = []) });
    await until("the stream is open", () => fake.streams.has(STREAM));
    fake.emit(STREAM, "status", { source: "up" });
    await page.evaluate(() => {
      window.spoken = [];
      const spoken = document.getElementById("spoken");
      new MutationObserver(() => window.spoken.push(spoken.textContent)).observe(spoken, { childList: true, characterData: true, subtree: true });
    });
    assert.notEqual(await page.locator("#state").textContent(), "Live");
    fake.emit(STREAM, "snapshot", FOODS);
    await shows(page, "#state", "Live");
    for (const count of [41, 42]) fake.emit(STREAM, "change", [{ count, food: "pie" }]);
    await shows(page, "#latest", "pie: 42");
    assert.deepEqual(await page.evaluate(() => window.spoken), ["Live"]);
  });

  test("a stream that ends is opened again, and a database that is away is said", async (context) => {
    const { fake, page } = await open(context);
    await shows(page, "#total", "64");
    fake.emit(STREAM, "status", { source: "down", reason: "cannot read the counts" });
    await shows(page, "#notice", "No new results at present: cannot read the counts.");
    fake.emit(STREAM, "status", { source: "up" });
    await shows(page, "#state", "Live");
    fake.begins[STREAM] = [["snapshot", [{ count: 7, food: "soup" }]]];
    fake.emit(STREAM, "bye", { reason: "drain", retry: 100 });
    fake.streams.get(STREAM).end();
    await shows(page, "#total", "7");
    assert.deepEqual(await rows(page), ["soup7"]);
    await shows(page, "#state", "Live");
  });

  test("a stream whose token has expired continues once somebody has signed in", async (context) => {
    const { fake, page } = await open(context);
    await shows(page, "#state", "Live");
    fake.noStream = { status: 401, body: '{"error":"a token is required"}' };
    fake.emit(STREAM, "bye", { reason: "expired" });
    fake.streams.get(STREAM).end();
    await shows(page, "#notice", "Not signed in: a token is required.");
    await shows(page, "#state", "Not signed in");
    fake.noStream = null;
    fake.begins[STREAM] = [["snapshot", [{ count: 7, food: "soup" }]]];
    await shows(page, "#state", "Live");
    assert.deepEqual(await rows(page), ["soup7"]);
  });

  test("without a database the page says so in a sentence", async (context) => {
    const { page } = await open(context, { prepare: (fake) => (fake.noStream = { status: 501, body: '{"error":"this gateway has no database"}' }) });
    await shows(page, "#notice", "this gateway has no database.");
    await shows(page, "#state", "Off");
    assert.equal(await page.locator("#rows").isVisible(), false);
    await screenshot(page, "counts-off");
  });

  test("it fits a phone, in the dark, and moves nothing when that is asked for", async (context) => {
    const { page } = await open(context, { ...PHONE, reducedMotion: "reduce" });
    await shows(page, "#total", "64");
    await fitsAPhone(page);
    assert.equal(await page.locator("rect").first().evaluate((one) => getComputedStyle(one).transitionDuration), "0s");
    await screenshot(page, "counts-phone");
  });
});

describe("the page of likes", { skip }, () => {
  const STREAM = "/windows/stream";
  const SIZES = { "1min": 60, "5min": 300, "10min": 600 };
  const start = ["start", { windows: Object.entries(SIZES).map(([type, seconds]) => ({ type, seconds })), interim: true }];
  const now = 1_769_860_800_000; // a multiple of ten minutes
  const result = (video, type, count, ago, final = true) => {
    const size = SIZES[type] * 1000;
    return { type, video_uid: VIDEOS[video], count, start: now - ago * size, end: now - ago * size + size, final };
  };
  const history = [1, 2, 3, 4, 5, 6, 7].map((ago) => result(0, "1min", 10 * ago, ago));
  const snapshot = ["snapshot", [...history, result(0, "1min", 2, 0, false), result(0, "5min", 1_234, 0, false), result(1, "10min", 5, 1)]];
  const open = (context, options) => setUp(context, { path: "/likes", prepare: (fake) => (fake.begins[STREAM] = [start, snapshot]), ...options });
  const window = (page, video, index) => page.locator(".video").nth(video).locator(".window").nth(index);
  const counts = (page, video) => page.locator(".video").nth(video).locator(".now strong").allTextContents();
  const lines = (page, video, index) => window(page, video, index).locator("li span").allTextContents();

  test("each video has its three counts so far and its last results, which link to their likes", async (context) => {
    const { fake, page } = await open(context);
    await shows(page, "#state", "Live");
    assert.deepEqual(await page.locator(".video h2").allTextContents(), ["First video", "Second <b>video</b>"]);
    assert.deepEqual(await counts(page, 0), ["2", "1,234", "0"]);
    assert.deepEqual(await counts(page, 1), ["0", "0", "0"]);
    assert.deepEqual(await lines(page, 0, 0), ["10", "20", "30", "40", "50", "60"]);
    const link = window(page, 1, 2).locator("a");
    assert.equal(await link.getAttribute("href"), `windows/10min/${now - 600_000}/${VIDEOS[1]}/messages`);
    fake.emit(STREAM, "change", [result(0, "1min", 3, 0, false)]);
    await until("the count rises", async () => (await counts(page, 0))[0] === "3");
    await screenshot(page, "likes");
    fake.emit(STREAM, "change", [result(0, "1min", 4, 0)]);
    await until("the window is closed", async () => (await counts(page, 0))[0] === "0");
    assert.deepEqual(await lines(page, 0, 0), ["4", "10", "20", "30", "40", "50"]);
  });

  test("the videos appear once somebody has signed in", async (context) => {
    const prepare = (fake) => {
      fake.begins[STREAM] = [start, snapshot];
      fake.noLikes = { status: 401, body: '{"error":"a token is required"}' };
    };
    const { fake, page } = await open(context, { prepare });
    await shows(page, "#state", "Not signed in");
    fake.noLikes = null;
    await shows(page, "#state", "Live");
    assert.deepEqual(await counts(page, 0), ["2", "1,234", "0"]);
  });

  test("without interim counts the open windows are unknown, not 0", async (context) => {
    const prepare = (fake) => (fake.begins[STREAM] = [["start", { ...start[1], interim: false }], snapshot]);
    const { page } = await open(context, { prepare });
    await shows(page, "#state", "Live");
    await until("they are unknown", async () => (await counts(page, 1)).join() === "–,–,–");
    assert.deepEqual(await lines(page, 1, 2), ["5"]);
  });

  test("a like is published, and the page says what became of it", async (context) => {
    const { fake, page } = await open(context);
    const answer = page.locator(".answer").nth(1);
    const likes = page.getByRole("button", { name: "Like Second <b>video</b>" });
    await likes.click();
    await until("it is published", async () => (await answer.textContent()) === "Kafka has your like; it is counted in a moment.");
    assert.deepEqual(fake.likes, [`/videos/${VIDEOS[1]}/likes`]);
    fake.noLikes = { status: 503, body: '{"error":"kafka did not acknowledge the message in time"}' };
    await likes.click();
    await until("it is not", async () => (await answer.textContent()) === "Your like may not have been published: kafka did not acknowledge the message in time.");
    fake.noLikes = { status: 429, body: '{"error":"too many requests per second from this address"}' };
    await likes.click();
    await until("it is rejected", async () => (await answer.textContent()) === "Your like was not published: too many requests per second from this address.");
    assert.equal(await likes.isDisabled(), false);
    assert.equal(await likes.evaluate((button) => button === document.activeElement), true);
  });

  test("without likes the page says so in a sentence, and links only to the pages that are there", async (context) => {
    const prepare = (fake) => {
      fake.noLikes = { status: 404, body: '{"error":"this gateway takes no likes"}' };
      fake.without = ["/"];
    };
    const { page } = await open(context, { prepare });
    await shows(page, "#notice", "this gateway takes no likes.");
    await until("the page of counts is linked", () => page.getByRole("link", { name: "Counts" }).isVisible());
    assert.equal(await page.getByRole("link", { name: "Sessions" }).isVisible(), false);
    await page.getByRole("link", { name: "Counts" }).click();
    await shows(page, "h1", "Food Counts");
  });

  test("it fits a phone, in the dark, and every control has a name", async (context) => {
    const { page } = await open(context, PHONE);
    await shows(page, "#state", "Live");
    await fitsAPhone(page);
    const unnamed = await page.evaluate(() => [...document.querySelectorAll("a, button")].filter((e) => !e.textContent.trim()).length);
    assert.equal(unnamed, 0);
    await screenshot(page, "likes-phone");
  });
});
