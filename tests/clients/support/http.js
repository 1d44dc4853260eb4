// Plain HTTP, one connection per request: no client of ours decides what is sent.

import { once } from "node:events";
import http from "node:http";

import { createParser } from "eventsource-parser";

import { until } from "./wait.js";

function send(url, { method = "GET", headers = {} } = {}) {
  const request = http.request(url, { method, headers, agent: false });
  request.end();
  return request;
}

/** The whole answer: status, headers, text, and what the text is in JSON. */
export async function request(url, options) {
  const sent = send(url, options);
  const [response] = await once(sent, "response");
  response.setEncoding("utf8");
  let text = "";
  for await (const piece of response) {
    text += piece;
  }
  return {
    status: response.statusCode,
    headers: response.headers,
    text,
    get json() {
      return JSON.parse(text);
    },
  };
}

/** Only status and headers; what follows is cut. */
export async function head(url, options) {
  const sent = send(url, options);
  const answered = await Promise.race([
    once(sent, "response").then(([response]) => response),
    once(sent, "upgrade").then(([response, socket]) => (socket.destroy(), response)),
  ]);
  sent.on("error", () => {});
  sent.destroy();
  return { status: answered.statusCode, headers: answered.headers };
}

/** A stream of server-sent events, read by eventsource-parser. It ends with the test. */
export async function openEvents(t, url, options) {
  const sent = send(url, options);
  t.after(() => sent.destroy());
  const [response] = await once(sent, "response");
  sent.on("error", () => {});
  const stream = { status: response.statusCode, headers: response.headers, events: [], retry: undefined, ended: false };
  const parser = createParser({
    onEvent: (event) => stream.events.push(event),
    onRetry: (milliseconds) => (stream.retry = milliseconds),
  });
  response.setEncoding("utf8");
  response.on("data", (text) => parser.feed(text));
  response.on("close", () => (stream.ended = true));
  response.on("error", () => {});
  /** Events without a name: messages. */
  stream.messages = () => stream.events.filter((event) => event.event === undefined);
  stream.named = (name) => stream.events.filter((event) => event.event === name).map((event) => JSON.parse(event.data));
  stream.close = () => sent.destroy();
  stream.takes = (count) =>
    until(() => `${count} messages on ${url}; there are ${stream.messages().length}`, () => stream.messages().length >= count);
  await until(`a start on ${url}`, () => stream.named("start").length + stream.named("bye").length > 0);
  return stream;
}
