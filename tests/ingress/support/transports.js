// Every transport through the proxy, as a browser would come: over TLS, with the Origin of the page. A client holds `messages` (their
// texts), `cuts` (why its stream ended, each time) and the newest `cursor`.

import { once } from "node:events";
import http2 from "node:http2";
import https from "node:https";

import { createParser } from "eventsource-parser";
import { io } from "socket.io-client";
import { WebSocket } from "ws";

import { until } from "../../clients/support/wait.js";

/** Opens a client of each transport and waits until all have begun. */
export async function openEveryTransport(t, proxy) {
  const clients = {
    "server-sent events over HTTP/1.1": openEvents(t, proxy),
    "server-sent events over HTTP/2": openEvents2(t, proxy),
    WebSocket: openSocket(t, proxy),
    "Socket.IO, polling": openSocketIo(t, proxy, { transports: ["polling"] }),
    "Socket.IO, websocket": openSocketIo(t, proxy, { transports: ["websocket"] }),
    "Socket.IO, polling and then websocket": openSocketIo(t, proxy),
  };
  for (const [transport, client] of Object.entries(clients)) {
    await begun(transport, client);
  }
  return clients;
}

export function begun(transport, client) {
  return until(() => `a start over ${transport}; cuts: ${client.cuts}`, () => client.cursor);
}

function newClient() {
  return { messages: [], cuts: [], cursor: undefined };
}

/** A stream of server-sent events over a connection of HTTP/1.1; `after` is a cursor, `localAddress` ours. */
export function openEvents(t, proxy, { after, localAddress } = {}) {
  const client = newClient();
  const headers = { Origin: proxy.url, ...(after && { "Last-Event-ID": after }) };
  const request = https.get(`${proxy.url}/events?format=json`, { ca: proxy.ca, agent: false, localAddress, headers });
  t.after(() => request.destroy());
  request.on("response", (response) => readEvents(client, response.statusCode, response));
  request.on("error", (error) => client.cuts.push(error.message));
  return client;
}

/** The same over HTTP/2, of which `session` may be shared. */
export function openEvents2(t, proxy, session = openSession(t, proxy)) {
  const client = newClient();
  const stream = session.request({ ":path": "/events?format=json", origin: proxy.url });
  stream.on("response", (headers) => readEvents(client, headers[":status"], stream));
  stream.on("error", (error) => client.cuts.push(error.message));
  return client;
}

export function openSession(t, proxy) {
  const session = http2.connect(proxy.url, { ca: proxy.ca });
  session.on("error", () => {});
  t.after(() => session.destroy());
  return session;
}

function readEvents(client, status, body) {
  const parser = createParser({
    onEvent({ event, data, id }) {
      client.cursor = id ?? client.cursor;
      if (event === undefined) {
        client.messages.push(JSON.parse(data).data);
      }
    },
  });
  body.setEncoding("utf8");
  body.on("data", (text) => parser.feed(text));
  body.on("close", () => client.cuts.push(`the end of a body with status ${status}`));
}

export function openSocket(t, proxy, { after, localAddress } = {}) {
  const client = newClient();
  const query = after ? `?after=${after}` : "";
  const socket = new WebSocket(`${proxy.url.replace("https", "wss")}/ws${query}`, { ca: proxy.ca, origin: proxy.url, localAddress });
  t.after(() => socket.terminate());
  socket.on("message", (text) => {
    const { type, cursor, data } = JSON.parse(text);
    client.cursor = cursor ?? client.cursor;
    if (type === "message") {
      client.messages.push(data);
    }
  });
  socket.on("close", (code) => client.cuts.push(`close ${code}`));
  socket.on("error", (error) => client.cuts.push(error.message));
  return client;
}

/** It comes back by itself, with its newest cursor. */
export function openSocketIo(t, proxy, { localAddress, ...options } = {}) {
  const client = newClient();
  const agent = localAddress && new https.Agent({ ca: proxy.ca, localAddress, keepAlive: true });
  const socket = io(proxy.url, {
    forceNew: true,
    ca: proxy.ca,
    extraHeaders: { Origin: proxy.url },
    reconnectionDelayMax: 1000,
    auth: (send) => send({ after: client.cursor }),
    ...(agent && { agent }),
    ...options,
  });
  t.after(() => (socket.close(), agent?.destroy()));
  for (const event of ["start", "message", "gap", "status", "bye"]) {
    socket.on(event, ({ cursor, data }) => {
      client.cursor = cursor ?? client.cursor;
      if (event === "message") {
        client.messages.push(data);
      }
    });
  }
  socket.on("disconnect", (reason) => client.cuts.push(reason));
  socket.on("connect_error", (error) => client.cuts.push(error.message));
  return client;
}

/** One answer over HTTP/1.1: status, headers, text. */
export async function get(proxy, path) {
  const request = https.get(`${proxy.url}${path}`, { ca: proxy.ca, agent: false, headers: { Origin: proxy.url } });
  const [response] = await once(request, "response");
  response.setEncoding("utf8");
  let text = "";
  for await (const piece of response) {
    text += piece;
  }
  return { status: response.statusCode, headers: response.headers, text };
}
