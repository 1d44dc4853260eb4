// Every transport through nginx with the settings of k8s/ingress/nginx.conf, over TLS, in front of several replicas.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { pause, until } from "../clients/support/wait.js";
import {
  begun,
  get,
  openEveryTransport,
  openEvents,
  openEvents2,
  openSession,
  openSocket,
  openSocketIo,
} from "./support/transports.js";
import { idleTimeout, startNginx, withoutNginx } from "./support/nginx.js";
import { own, startReplicas, withoutReplicas } from "./support/replicas.js";

const skip = withoutNginx() || withoutReplicas();
const onlyOwn = own ? false : "the replicas were not started by this test";
const HEADROOM = 5; // seconds

describe("nginx before the consumer", { skip }, () => {
  let replicas;

  before(async () => {
    replicas = await startReplicas();
  });
  after(() => replicas?.stop());

  let count = 0;
  /** Each client gets the next message, from whichever producer. */
  async function takeTheNext(clients) {
    const had = new Map(Object.entries(clients).map(([transport, client]) => [transport, client.messages.length]));
    await replicas.publish?.([`message ${(count += 1)}`]);
    for (const [transport, client] of Object.entries(clients)) {
      await until(() => `a message over ${transport}; cuts: ${client.cuts}`, () => client.messages.length > had.get(transport), 30_000);
    }
  }

  describe("silence", { concurrency: true }, () => {
    test(`every transport stays open without messages for longer than ${idleTimeout} s, and then delivers the next one`, async (t) => {
      const proxy = await startNginx(t, replicas.addresses);
      const clients = await openEveryTransport(t, proxy);
      await pause((idleTimeout + HEADROOM) * 1000);
      await takeTheNext(clients);
      for (const [transport, client] of Object.entries(clients)) {
        assert.deepEqual(client.cuts, [], transport);
      }
    });

    test("a timeout shorter than the time between two pings cuts them, so it must be longer", { skip: onlyOwn }, async (t) => {
      const proxy = await startNginx(t, replicas.addresses, { [`proxy_read_timeout ${idleTimeout}s`]: "proxy_read_timeout 20s" });
      const clients = await openEveryTransport(t, proxy);
      await pause(24_000);
      const cut = Object.keys(clients).filter((transport) => clients[transport].cuts.length > 0);
      assert.deepEqual(cut, ["WebSocket", "Socket.IO, polling", "Socket.IO, websocket", "Socket.IO, polling and then websocket"]);
    });
  });

  test("many streams of server-sent events share one connection of HTTP/2", async (t) => {
    const proxy = await startNginx(t, replicas.addresses);
    const session = openSession(t, proxy);
    const clients = Object.fromEntries(Array.from({ length: 20 }, (_, number) => [`stream ${number}`, openEvents2(t, proxy, session)]));
    for (const [transport, client] of Object.entries(clients)) {
      await begun(transport, client);
    }
    assert.equal(session.alpnProtocol, "h2");
    await takeTheNext(clients);
  });

  test("each client that polls stays with one replica, and they spread over all", async (t) => {
    const proxy = await startNginx(t, replicas.addresses);
    const addresses = Array.from({ length: 40 }, (_, number) => `127.0.0.${number + 2}`);
    const clients = Object.fromEntries(
      addresses.map((localAddress) => [localAddress, openSocketIo(t, proxy, { localAddress, transports: ["polling"] })]),
    );
    for (const [transport, client] of Object.entries(clients)) {
      await begun(transport, client);
    }
    for (let round = 0; round < 3; round += 1) {
      await takeTheNext(clients);
    }
    const answered = proxy.answered();
    for (const address of addresses) {
      assert.equal(answered.get(address).size, 1, `${address} was answered by ${[...answered.get(address)]}`);
      assert.deepEqual(clients[address].cuts, []);
    }
    assert.deepEqual(new Set([...answered.values()].flatMap((each) => [...each])), new Set(replicas.addresses));
  });

  test("the page, its modules and pages of history come through", async (t) => {
    const proxy = await startNginx(t, replicas.addresses);
    assert.match((await get(proxy, "/")).text, /<title>Hello World Broadcasts<\/title>/);
    assert.match((await get(proxy, "/client.js")).headers["content-type"], /javascript/);
    assert.ok(JSON.parse((await get(proxy, "/messages?limit=5")).text).messages.length <= 5);
  });

  test("without any replica, an EventSource is instructed to reconnect, and other requests get a 502", async (t) => {
    const proxy = await startNginx(t, ["127.0.0.1:1"]);
    const answer = await get(proxy, "/events");
    assert.deepEqual([answer.status, answer.headers["content-type"], answer.text], [200, "text/event-stream", "retry: 3000\n\n"]);
    assert.equal((await get(proxy, "/messages")).status, 502);
  });

  test("when a replica is killed, its clients resume on another one and miss nothing", { skip: onlyOwn }, async (t) => {
    const proxy = await startNginx(t, replicas.addresses);
    const events = openEvents(t, proxy);
    const socket = openSocket(t, proxy);
    const polling = openSocketIo(t, proxy, { transports: ["polling"] });
    await Promise.all([events, socket, polling].map((client) => begun("a transport", client)));
    await takeTheNext({ events, socket, polling });
    const replica = await until("a request of the client that polls is logged", () => [...(proxy.answered().get("127.0.0.1") ?? [])][0]);
    await replicas.kill(replica);
    await replicas.publish(["while they are disconnected"]);
    await until("the proxy has cut its streams", () => events.cuts.length > 0 && socket.cuts.length > 0);

    const [eventsAgain, socketAgain] = [openEvents(t, proxy, { after: events.cursor }), openSocket(t, proxy, { after: socket.cursor })];
    await replicas.publish(["after that"]);
    for (const client of [eventsAgain, socketAgain, polling]) {
      await until(() => `the last message; cuts: ${client.cuts}`, () => client.messages.includes("after that"));
      assert.deepEqual(client.messages.slice(-2), ["while they are disconnected", "after that"]);
    }
  });
});
