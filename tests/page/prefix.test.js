/** Everything below a path, behind nginx with the settings of k8s/ingress/prefix.conf. */
import assert from "node:assert/strict";
import { request } from "node:http";
import { after, before, describe, test } from "node:test";
import { EventSource } from "eventsource";
import { io } from "socket.io-client";
import { WebSocket } from "ws";
import { startNginx, withoutNginx } from "../ingress/support/nginx.js";
import { launch, missing, texts, until } from "./browser.js";
import { noLocal, startLocal } from "./local.js";

const skip = missing(noLocal ?? (withoutNginx() || undefined));
const PAGE = "/tools/herald";
const EVENTS = "/tools/herald-events";
const OPTIONS = { INTERVAL_MIN: "200ms", INTERVAL_MAX: "400ms", PUBLISH_TOPICS: "dev-topic" };

/** The proxies: what they change in the file, and whether Herald is told the path. */
const PROXIES = [
  { name: "a proxy that removes the path", changes: {}, passes: false },
  {
    name: "a proxy that passes the path on",
    changes: {
      "proxy_pass http://herald/;": "proxy_pass http://herald;",
      "proxy_pass http://herald/events;": "proxy_pass http://herald;",
      "proxy_pass http://herald_events/;": "proxy_pass http://herald_events;",
      // nginx redirects by itself only to what ends in a slash; here Herald does.
      [`location ${PAGE}/ {`]: `location ${PAGE} {`,
      [`location ${EVENTS}/ {`]: `location ${EVENTS} {`,
    },
    passes: true,
  },
  {
    name: "a proxy that removes the path and redirects nothing",
    changes: {
      "proxy_pass http://herald/;": `rewrite ^${PAGE}/?(.*)$ /$1 break; proxy_pass http://herald;`,
      "proxy_pass http://herald_events/;": `rewrite ^${EVENTS}/?(.*)$ /$1 break; proxy_pass http://herald_events;`,
      [`location ${PAGE}/ {`]: `location ~ ^${PAGE}(/|$) {`,
      [`location ${EVENTS}/ {`]: `location ~ ^${EVENTS}(/|$) {`,
    },
    passes: false,
  },
];

let browser;
before(async () => {
  if (skip) return;
  // The certificate is made for each proxy.
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
  browser = await launch(["--ignore-certificate-errors"]);
});
after(() => browser?.close());

for (const { name, changes, passes } of PROXIES) {
  describe(name, { skip }, () => {
    let proxy;
    let services;

    // `after` of this block ends what its tests share.
    const endings = [];
    const shared = { after: (act) => endings.push(act) };
    before(async () => {
      const start = (path) => startLocal(shared, { ...OPTIONS, ...(passes && { PATH_PREFIX: path }) });
      const [page, gateway] = passes ? await Promise.all([start(PAGE), start(`${EVENTS}/`)]) : Array(2).fill(await start());
      services = { page: page.page, gateway: gateway.gateway };
      const upstream = (url) => new URL(url).host;
      const second = { "server 10.96.0.81:80;": `server ${upstream(services.gateway)};` };
      proxy = await startNginx(shared, [upstream(services.page)], { ...second, ...changes }, "prefix.conf");
    });
    after(async () => {
      for (const end of endings.toReversed()) await end();
    });

    /** A tab, and the addresses that were requested, with the status of each response. */
    async function open(context, path) {
      const window = await browser.newContext({ ignoreHTTPSErrors: true });
      context.after(() => window.close());
      const page = await window.newPage();
      const requested = [];
      page.on("response", (response) => requested.push([response.status(), response.url()]));
      await page.goto(proxy.url + path);
      return { page, requested, problems: () => requested.filter(([status, url]) => status >= 400 || !new URL(url).pathname.startsWith(path.split("?")[0])) };
    }

    for (const slash of ["/", ""]) {
      test(`the page is live at ${PAGE}${slash}`, async (context) => {
        const { page, problems } = await open(context, `${PAGE}${slash}?topic=dev-topic`);
        const isLive = async () => (await page.locator("#state").textContent()) === "Live";
        await page.waitForURL(`${proxy.url}${PAGE}/?topic=dev-topic`);
        await until("a message is shown", async () => (await texts(page)).some((text) => /Hello world from dev producer/.test(text)));
        await until("it is live", isLive);
        assert.equal(await page.evaluate(() => getComputedStyle(document.getElementById("scroller")).overflowY), "auto", "its style is loaded");
        if (slash) assert.deepEqual(problems(), []);
        await page.locator("[name=transport][value=websocket]").check({ force: true });
        const shown = (await texts(page)).length;
        await until("more come over WebSocket", async () => (await texts(page)).length > shown + 2);
        await until("it is live", isLive);
      });

      test(`the page of the gateway works at ${EVENTS}${slash}`, async (context) => {
        const { page, problems } = await open(context, EVENTS + slash);
        await page.waitForURL(`${proxy.url}${EVENTS}/`);
        await until("its script runs", async () => (await page.locator("#session").inputValue()) !== "");
        await page.locator("#connect").click();
        await until("the session is open", async () => (await page.locator("#state").textContent()) === "Open");
        await page.getByRole("button", { name: "Send EVENT" }).click();
        await until("the document has the event", async () => (await page.locator("#result").textContent()).includes('"click"'));
        if (slash) assert.deepEqual(problems().filter(([, url]) => !url.includes("/data?")), []); // 404 before the first event
        await page.getByRole("link", { name: "Counts" }).click();
        await page.waitForURL(`${proxy.url}${EVENTS}/counts`);
        await until("it counts", async () => Number(await page.locator("#total").textContent()) > 0);
        await page.getByRole("link", { name: "Likes" }).click();
        await page.waitForURL(`${proxy.url}${EVENTS}/likes`);
        await page.locator(".video button").first().click();
        await until("it is published", async () => (await page.locator(".answer").first().textContent()).startsWith("Kafka has your like"));
        await page.getByRole("link", { name: "Sessions" }).click();
        await page.waitForURL(`${proxy.url}${EVENTS}/`);
      });
    }

    for (const url of [undefined, PAGE, `${PAGE}/`]) {
      test(`client.js is live with ${url ? `the url ${url}` : "no url"}, over each transport`, async (context) => {
        // A page of the same origin, at another path.
        const { page } = await open(context, "/");
        for (const transport of ["sse", "websocket"]) {
          const received = await page.evaluate(
            async ([from, url, transport]) => {
              const { connect } = await import(from);
              const stream = connect({ url, transport });
              const message = await new Promise((resolve) => stream.addEventListener("message", ({ detail }) => resolve(detail.data)));
              const { state } = stream;
              stream.close();
              return { message, state };
            },
            [`${PAGE}/client.js`, url, transport],
          );
          assert.match(received.message, /Hello world/);
          assert.deepEqual(received.state, { name: "live" });
        }
      });
    }

    test("server-sent events, with the package eventsource", async (context) => {
      const source = new EventSource(`${proxy.url}${PAGE}/events?last=1`);
      context.after(() => source.close());
      const message = await new Promise((resolve) => source.addEventListener("message", ({ data }) => resolve(data)));
      assert.match(message, /Hello world/);
    });

    test("WebSockets, with the package ws", async (context) => {
      const next = (path, send) =>
        new Promise((resolve, reject) => {
          const socket = new WebSocket(`${proxy.url.replace("https", "wss")}${path}`);
          context.after(() => socket.terminate());
          socket.on("open", () => send && socket.send(send));
          socket.on("message", (text) => resolve(JSON.parse(text)));
          socket.on("error", reject);
        });
      assert.equal((await next(`${PAGE}/ws?last=1`)).type, "start");
      const frame = JSON.stringify([{ timestamp: 1, type: "SESSION_START" }]);
      assert.equal((await next(`${EVENTS}/websocket?session_id=ws&ack=1`, frame)).type, "ack");
    });

    for (const transports of [["polling"], ["websocket"], ["polling", "websocket"]]) {
      test(`Socket.IO by ${transports.join(" and then ")}`, async (context) => {
        const socket = io(proxy.url, { path: `${PAGE}/socket.io`, transports, forceNew: true, ca: proxy.ca, auth: { last: 1 } });
        context.after(() => socket.close());
        const upgraded = transports.length === 1 || new Promise((resolve) => socket.io.engine.on("upgrade", resolve));
        const message = await new Promise((resolve, reject) => {
          socket.on("message", ({ data }) => resolve(data));
          socket.on("connect_error", reject);
        });
        assert.match(message, /Hello world/);
        await upgraded;
        assert.equal(socket.io.engine.transport.name, transports.at(-1));
      });
    }

    test("history, configuration, results and what is published", async () => {
      const json = async (path, options) => {
        const answer = await fetch(proxy.url + path, options);
        return [answer.status, await answer.json()];
      };
      await until("there is a page", async () => (await json(`${PAGE}/messages?limit=1`))[1].messages.length === 1);
      assert.equal((await json(`${PAGE}/config`))[1].topic, "dev-topic");
      const post = { method: "POST", body: "Hello from below a path" };
      assert.equal((await json(`${EVENTS}/topics/dev-topic/messages`, post))[0], 200);
      assert.equal((await json(`${EVENTS}/videos/a/likes`, { method: "POST" }))[0], 200);
      await until("there are counts", async () => (await json(`${EVENTS}/aggregated`))[1].length > 0);
      // Without keys of tokens there are no tickets, which their own endpoint answers.
      const direct = await fetch(new URL("tickets", services.page), { method: "POST" });
      assert.deepEqual(await json(`${PAGE}/tickets`, { method: "POST" }), [direct.status, await direct.json()]);
    });

    test("openapi.json names the path as the address of the endpoints", async () => {
      for (const path of [PAGE, EVENTS]) {
        const address = `${proxy.url}${path}/openapi.json`;
        const { servers } = await (await fetch(address)).json();
        assert.deepEqual(servers.map(({ url }) => new URL(url, address).href), [`${proxy.url}${path}/`]);
      }
    });

    test("what is outside of the path is not Herald's", async () => {
      for (const path of ["/", "/events", "/tools", "/tools/heralds", "/tools/herald-event/"]) {
        const { status } = await fetch(proxy.url + path);
        assert.equal(status, 404, path);
      }
    });

    if (!passes) return;
    test("the service answers what is outside of its path with one sentence", async () => {
      for (const [url, path] of [
        [services.page, PAGE],
        [services.gateway, EVENTS],
      ]) {
        for (const outside of ["/", "/events", "/socket.io/?EIO=4&transport=polling", `${path}s/`]) {
          const answer = await fetch(new URL(outside, url));
          const error = `there is nothing at this address; this server is below ${path}/ (--path-prefix)`;
          assert.deepEqual([answer.status, await answer.json()], [404, { error }], outside);
          assert.ok(answer.headers.has("x-request-id"));
        }
        const { status, headers } = await get(`${new URL(path, url)}?topic=dev-topic`);
        assert.deepEqual([status, headers.location], [308, `${path.split("/").at(-1)}/?topic=dev-topic`]);
      }
    });
  });
}

test("without any replica, an EventSource is instructed to reconnect", { skip }, async (context) => {
  const proxy = await startNginx(context, ["127.0.0.1:1"], { "server 10.96.0.81:80;": "server 127.0.0.1:1;" }, "prefix.conf");
  const answer = await fetch(`${proxy.url}${PAGE}/events`);
  assert.deepEqual([answer.status, answer.headers.get("content-type"), await answer.text()], [200, "text/event-stream", "retry: 3000\n\n"]);
});

/** The response without following a redirect, as it came. */
function get(url) {
  return new Promise((resolve, reject) => {
    const sent = request(url, (response) => {
      response.resume();
      resolve({ status: response.statusCode, headers: response.headers });
    });
    sent.on("error", reject).end();
  });
}
