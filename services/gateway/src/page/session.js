/** One session over a WebSocket. */
import { sentenceOf } from "./sentence.js";

/**
 * Opens the session `id`, whose frames are acknowledged. Events: `open`; `answer` with what the server sent; `close` with the code, the
 * reason, whether the session was open, and the server's sentence if it rejected the handshake.
 */
export function openSession(id) {
  const address = new URL("websocket", location.href);
  address.search = new URLSearchParams({ session_id: id, ack: "1" });
  const target = new EventTarget();
  const emit = (type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }));
  const socket = new WebSocket(Object.assign(new URL(address), { protocol: address.protocol.replace("http", "ws") }));
  let wasOpened = false;
  socket.onopen = () => {
    wasOpened = true;
    emit("open");
  };
  socket.onmessage = ({ data }) => emit("answer", parse(data));
  socket.onclose = async ({ code, reason }) => {
    // Browsers hide the response to a handshake that failed; the same request without one has the same response.
    const sentence = wasOpened ? "" : await rejection(address);
    emit("close", { code, reason, wasOpened, sentence });
  };
  target.id = id;
  target.send = (text) => socket.send(text);
  target.close = () => socket.close(1000);
  return target;
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return { type: "unknown", text: String(data) };
  }
}

async function rejection(address) {
  const answer = await fetch(address, { cache: "no-store" }).catch(() => null);
  if (!answer || answer.status === 426) return ""; // the handshake itself was missing, so nothing else was wrong
  return sentenceOf(await answer.text());
}
