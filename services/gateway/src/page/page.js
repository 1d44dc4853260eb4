/** The page: a session, frames to send, the answers, and the document that becomes of them. */
import { watchDocument } from "./data.js";
import { openSession } from "./session.js";
import { answerInWords, closeInWords } from "./words.js";

/** Lines that the log keeps. */
const LINES = 100;

const $ = (id) => document.getElementById(id);
let session = null;
let stopWatching = () => {};

$("session").value = newId();
$("new").addEventListener("click", () => ($("session").value = newId()));
$("open").addEventListener("submit", (event) => {
  event.preventDefault();
  open($("session").value);
});
$("close").addEventListener("click", () => session?.close());
$("event").addEventListener("submit", (event) => {
  event.preventDefault();
  send([eventOf(event.submitter?.value ?? "EVENT")]);
});
$("raw").addEventListener("submit", (event) => {
  event.preventDefault();
  sendText($("frame").value);
});
$("twice").addEventListener("click", () => {
  const frame = [eventOf("EVENT")];
  send(frame);
  send(frame);
});
$("disorder").addEventListener("click", () => {
  const start = now() - 3;
  send([
    { type: "EVENT", timestamp: start + 3, name: "last_event" },
    { type: "EVENT", timestamp: start + 1, name: "first_event" },
  ]);
  send([
    { type: "EVENT", timestamp: start + 2, name: "middle_event" },
    { type: "SESSION_START", timestamp: start },
  ]);
});

function open(id) {
  session?.close();
  stopWatching();
  const opened = openSession(id);
  session = opened;
  show("opening", "Opening…");
  const on = (type, act) => opened.addEventListener(type, ({ detail }) => session === opened && act(detail));
  on("open", () => {
    show("live", "Open");
    line(`The session ${id} is open.`);
  });
  on("answer", (answer) => line(answerInWords(answer), answer.type === "error" ? "bad" : "received"));
  on("close", (end) => {
    session = null;
    show("ended", end.wasOpened ? "Closed" : "Not opened");
    line(closeInWords(end), end.code === 1000 ? "" : "bad");
  });
  stopWatching = watchDocument(id, showDocument);
}

function show(state, words) {
  document.documentElement.dataset.state = state;
  $("state").textContent = words;
  $("spoken").textContent = words;
  for (const button of document.querySelectorAll(".send")) button.disabled = state !== "live";
  $("close").disabled = state === "ended";
}

function showDocument({ text, sentence, problem }) {
  $("about").textContent = sentence;
  $("about").classList.toggle("bad", problem);
  if (problem) return; // the last document stays
  $("result").hidden = text === null;
  const changed = $("result").textContent !== (text ?? "");
  $("result").textContent = text ?? "";
  if (!changed || text === null) return;
  $("spoken").textContent = `The document has changed. ${sentence}`;
  $("result").classList.remove("new");
  void $("result").offsetWidth; // restarts the animation
  $("result").classList.add("new");
}

function eventOf(type) {
  const timestamp = $("timestamp").value === "" ? now() : Number($("timestamp").value);
  return type === "EVENT" ? { type, timestamp, name: $("name").value } : { type, timestamp, session_id: session?.id };
}

function send(events) {
  sendText(JSON.stringify(events));
}

function sendText(text) {
  session?.send(text);
  line(`Sent ${text}`, "sent");
}

function line(text, kind = "") {
  const log = $("log");
  const item = document.createElement("li");
  item.textContent = text;
  item.className = kind;
  log.append(item);
  while (log.children.length > LINES) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
}

/** Seconds since 1970. */
function now() {
  return Math.round(Date.now() / 1_000);
}

/** A random UUID. Browsers have `randomUUID` only on localhost and over TLS. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
