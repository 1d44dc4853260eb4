/** The page's texts: answers, close codes and documents in plain words. */

/** What the server sent, in a sentence. */
export function answerInWords(answer) {
  if (answer.type === "ack") return `Kafka has the frame: partition ${answer.partition}, offset ${answer.offset}.`;
  if (answer.type !== "error") return `Received ${answer.text ?? JSON.stringify(answer)}`;
  const where = Number.isInteger(answer.element) ? `The event at index ${answer.element} is invalid` : "The frame was rejected";
  return `${where}: ${answer.error}.`;
}

const codes = {
  1000: "The session is closed",
  1001: "This replica of the gateway is shutting down; open the session again",
  1006: "The connection broke; open the session again",
  1007: "The frame was not UTF-8",
  1008: "The gateway closed the connection",
  1009: "The frame is too large",
  1013: "Kafka does not accept frames at present; try again later",
};

/** How a connection ended, in a sentence. */
export function closeInWords({ code, reason, wasOpened, sentence }) {
  if (!wasOpened) return `The session was not opened: ${sentence || "the gateway cannot be reached"}.`;
  const words = codes[code] ?? "The connection was closed";
  return reason ? `${words}: ${reason} (code ${code}).` : `${words} (code ${code}).`;
}

/** A document, in a sentence. */
export function documentInWords({ start, end, children }) {
  const count = children.length === 1 ? "1 event" : `${children.length} events`;
  if (end !== null) return start === null ? `Ended without a start, with ${count}.` : `From start to end, with ${count}.`;
  return start === null ? `Not started yet, with ${count}.` : `Started, with ${count}.`;
}
