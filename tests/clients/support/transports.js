// The same records through every transport.

import { io } from "socket.io-client";

import { openEvents, request } from "./http.js";
import { until } from "./wait.js";
import { openSocket } from "./websocket.js";

/**
 * Reads a topic from its start through each transport until `count` messages and gaps have come. The result holds `messages` and
 * `gaps`; `data` of a message is the value that the transport delivered.
 */
export async function readThroughEveryTransport(t, consumer, count, parameters = {}) {
  const query = new URLSearchParams({ from: "earliest", ...parameters });
  const [text, json, websocket, polling, upgraded, pages] = await Promise.all([
    events(t, `${consumer.url}/events?${query}`, count, (data) => ({ data })),
    events(t, `${consumer.url}/events?${query}&format=json`, count, JSON.parse),
    frames(t, `${consumer.ws}?${query}`, count),
    socketio(t, consumer.url, count, { transports: ["polling"], auth: { from: "earliest", ...parameters } }),
    socketio(t, consumer.url, count, { transports: ["websocket"], auth: { from: "earliest", ...parameters } }),
    history(consumer.url, parameters),
  ]);
  return {
    "server-sent events, text": text,
    "server-sent events, json": json,
    WebSocket: websocket,
    "Socket.IO, polling": polling,
    "Socket.IO, websocket": upgraded,
    history: pages,
  };
}

async function events(t, url, count, read) {
  const stream = await openEvents(t, url);
  const gaps = () => stream.named("gap");
  await until(() => `${count} events of ${url}; there are ${stream.messages().length}`, () => stream.messages().length + gaps().length >= count);
  return { messages: stream.messages().map(({ data, id }) => ({ ...read(data), id })), gaps: gaps() };
}

async function frames(t, url, count) {
  const client = openSocket(t, url);
  await until(`${count} frames of ${url}`, () => client.got("message").length + client.got("gap").length >= count);
  return { messages: client.got("message"), gaps: client.got("gap") };
}

async function socketio(t, url, count, options) {
  const socket = io(url, { forceNew: true, ...options });
  t.after(() => socket.close());
  const got = { messages: [], gaps: [] };
  socket.on("message", (message) => got.messages.push(message));
  socket.on("gap", (gap) => got.gaps.push(gap));
  await until(() => `${count} events of Socket.IO; there are ${got.messages.length}`, () => got.messages.length + got.gaps.length >= count);
  return got;
}

async function history(url, { from = "earliest", ...parameters }) {
  const got = { messages: [], gaps: [] };
  let position = { from };
  for (;;) {
    const { json: page } = await request(`${url}/messages?${new URLSearchParams({ limit: 500, ...position, ...parameters })}`);
    got.messages.push(...page.messages);
    got.gaps.push(...page.gaps);
    if (page.messages.length + page.gaps.length === 0) {
      return got;
    }
    position = { after: page.after };
  }
}
