import { once } from "node:events";

import { WebSocket } from "ws";

import { until } from "./wait.js";

/** A WebSocket that keeps its frames, parsed, and how it was closed. It ends with the test. */
export function openSocket(t, url, options) {
  const socket = new WebSocket(url, options);
  const opened = { socket, frames: [], binary: 0, closed: undefined, refused: undefined };
  t.after(() => socket.terminate());
  socket.on("message", (data, isBinary) => {
    opened.binary += Number(isBinary);
    opened.frames.push(JSON.parse(data));
  });
  socket.on("close", (code, reason) => (opened.closed = { code, reason: String(reason) }));
  socket.on("unexpected-response", (request, response) => {
    opened.refused = response.statusCode;
    request.destroy();
  });
  socket.on("error", () => {});
  opened.got = (type) => opened.frames.filter((frame) => frame.type === type);
  opened.takes = (type, count = 1) =>
    until(() => `${count} ${type} on ${url}; there are ${opened.got(type).length}`, () => opened.got(type).length >= count);
  opened.ends = () => until(`the end of ${url}`, () => opened.closed);
  /** The newest cursor. */
  opened.cursor = () => opened.frames.findLast((frame) => frame.cursor)?.cursor;
  return opened;
}

/** The whole response to a handshake that is rejected. */
export async function rejected(url, options) {
  const socket = new WebSocket(url, options);
  const [request, response] = await once(socket, "unexpected-response");
  socket.on("error", () => {});
  response.setEncoding("utf8");
  let text = "";
  for await (const piece of response) {
    text += piece;
  }
  request.destroy();
  return { status: response.statusCode, headers: response.headers, text };
}
