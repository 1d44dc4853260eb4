/**
 * A session as the original's end-to-end test sends it, and how a client sends and reads it. Shared by the folders that test the
 * gateway. Each of them has its own packages, so the WebSocket class, that of `ws` or the built-in one, is a parameter.
 */

const id = "e6fa79ca-d142-4046-a134-5134f16a0b5e";

/** The original's case: the frames, in the order in which they are sent, and the document that they become. */
export const ORIGINAL = {
  id,
  frames: [
    [
      { timestamp: 1569972082, type: "SESSION_START", session_id: id },
      { type: "EVENT", timestamp: 1569972085, name: "last_event" },
    ],
    [
      { type: "EVENT", timestamp: 1569972083, name: "middle_event" },
      { type: "EVENT", timestamp: 1569972083, name: "first_event" },
      { timestamp: 1569972086, type: "SESSION_END", session_id: id },
    ],
  ],
  document: {
    session_id: id,
    type: "SESSION",
    start: 1569972082,
    end: 1569972086,
    children: [
      { type: "EVENT", timestamp: 1569972083, name: "middle_event" },
      { type: "EVENT", timestamp: 1569972083, name: "first_event" },
      { type: "EVENT", timestamp: 1569972085, name: "last_event" },
    ],
  },
};

/** The address of a gateway's endpoint for this session. `url` is the gateway's, `http://host:port`. */
export function address(url, path, id, parameters = {}) {
  const address = new URL(path, url);
  address.search = new URLSearchParams({ session_id: id, ...parameters });
  if (path === "/websocket") address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

/**
 * Sends the frames, arrays of events or texts, over one WebSocket. If the last one ends the session, it waits until the gateway
 * closes; otherwise it closes after the last acknowledgement, or at once without `ack`. Resolves with all that was received, and
 * with the code and the reason of the close.
 */
export function send(WebSocket, url, id, frames, { ack = false, milliseconds = 20_000 } = {}) {
  const last = frames.at(-1);
  const ends = Array.isArray(last) && last.at(-1)?.type === "SESSION_END";
  const socket = new WebSocket(address(url, "/websocket", id, ack ? { ack: 1 } : {}));
  const received = [];
  return new Promise((resolve, reject) => {
    const fail = (what) => (clearTimeout(timer), reject(new Error(`${what}; received: ${JSON.stringify(received)}`)));
    const timer = setTimeout(() => (fail(`the session was not closed within ${milliseconds} ms`), socket.close()), milliseconds);
    socket.addEventListener("open", () => {
      for (const frame of frames) socket.send(Array.isArray(frame) ? JSON.stringify(frame) : frame);
      if (!ends && !ack) socket.close(1000);
    });
    socket.addEventListener("message", ({ data }) => {
      received.push(JSON.parse(data));
      if (!ends && received.length === frames.length) socket.close(1000);
    });
    socket.addEventListener("error", ({ message }) => fail(`cannot send the session: ${message}`));
    socket.addEventListener("close", ({ code, reason }) => (clearTimeout(timer), resolve({ received, code, reason })));
  });
}

/** The document of a session as soon as it has an end. */
export async function ended(url, id, milliseconds = 20_000) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const response = await fetch(address(url, "/data", id)).catch((error) => new Response(error.message, { status: 503 }));
    const text = await response.text();
    const document = response.status === 200 ? JSON.parse(text) : {};
    if (typeof document.end === "number") return document;
    if (Date.now() > deadline) throw new Error(`session ${id} has no end within ${milliseconds} ms: ${response.status} ${text}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
