/** The page: its configuration, the messages, and the state of the connection. */
import { Figures } from "./chart.js";
import { connect } from "./client.js";
import { MessageList } from "./list.js";
import { gapInWords, mergeGap, readableGap, stateExplained, stateInWords } from "./words.js";

/** The number of messages shown at first; tabs that start with the same number share a connection. */
const FIRST = 200;
/** More messages per minute than this are too many to be read aloud. */
const ALOUD = 20;
const ALOUD_AFTER = 2_000;

const $ = (id) => document.getElementById(id);
const figures = new Figures($);
const list = new MessageList($, { fetchPage, reached, shown: (message, arrived) => figures.count(message, arrived) });

let stream = null;
let began = Infinity;
let gaps = [];
let state;
let announcing;
let today = new Date().toDateString();

const config = await configuration();
let topic = new URLSearchParams(location.search).get("topic") ?? config.topic;
document.documentElement.dataset.environment = config.environment ?? "";
$("custom_header").textContent = config.header;
$("topics").hidden = config.topics.length < 2;
$("topic").append(...config.topics.map((name) => new Option(name, name, false, name === topic)));
$("topic").addEventListener("change", ({ target }) => choose(target.value));
for (const radio of document.querySelectorAll("[name=transport]")) {
  radio.checked = radio.value === transport();
  radio.addEventListener("change", () => {
    remember(radio.value);
    open(stream.cursor ? { after: stream.cursor } : { last: FIRST }); // the other transport continues where this one stopped
  });
}
choose(topic);
setInterval(tick, 1_000);

async function configuration() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 10_000)) {
    const answer = await fetch("config", { cache: "no-store" }).catch(() => null);
    if (answer?.ok) {
      figures.setClock(answer.headers.get("date"));
      return answer.json();
    }
    const name = answer?.status === 401 ? "signed-out" : "waiting";
    showState({ name, until: Date.now() + wait });
    await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random() / 2)));
  }
}

function choose(name) {
  topic = name;
  const address = new URL(location.href);
  if (topic === config.topic) address.searchParams.delete("topic");
  else address.searchParams.set("topic", topic);
  history.replaceState(null, "", address);
  $("env").textContent = `Kafka Topic: ${topic}`;
  list.clear();
  figures.clear();
  gaps = [];
  showGaps();
  open({ last: FIRST });
}

function open(start) {
  stream?.close();
  const opened = connect({ topic, transport: transport(), ...start });
  stream = opened;
  const on = (type, act) => opened.addEventListener(type, ({ detail }) => stream === opened && act(detail));
  on("start", ({ cursor }) => {
    began = Date.now();
    list.begin(cursor);
  });
  on("message", (event) => list.append(event));
  on("gap", (event) => {
    const gap = readableGap(event);
    list.append(gap);
    keepGap(gap);
  });
  on("state", (next) => (next.name === "ended" ? resume(opened, next) : showState(next)));
  showState(opened.state);
}

/** A stream that ended because nobody is signed in any more continues once somebody is. */
async function resume(ended, state) {
  const answer = await fetch("config", { cache: "no-store" }).catch(() => null);
  if (answer?.status !== 401) return showState(state);
  await configuration();
  if (stream === ended) open(ended.cursor ? { after: ended.cursor } : { last: FIRST });
}

async function fetchPage(query) {
  const signal = AbortSignal.timeout(10_000);
  const answer = await fetch(`messages?${new URLSearchParams({ topic, ...query })}`, { signal, cache: "no-store" });
  if (!answer.ok) throw new Error(answer.status === 503 ? "Kafka is unreachable" : `the server answered ${answer.status}`);
  const page = await answer.json();
  page.gaps = page.gaps.map(readableGap);
  for (const gap of page.gaps) keepGap(gap);
  return page;
}

/** The stream's position: the end of the list is loaded again from here. */
function reached() {
  return stream.cursor;
}

// Announcements are delayed, so that screen readers do not announce a disconnection of a second.
function announce(words) {
  clearTimeout(announcing);
  announcing = setTimeout(() => ($("spoken").textContent = words), 1_500);
}

function showState(next) {
  const changed = state?.name !== next.name;
  state = next;
  document.documentElement.dataset.state = state.name;
  $("state").textContent = stateInWords(state);
  $("away").textContent = stateExplained(state);
  $("away").hidden = $("away").textContent === "";
  if (!changed) return;
  announce(state.name === "waiting" ? "Disconnected. Reconnecting." : stateInWords(state));
  if (state.name === "live") figures.live();
}

function keepGap(gap) {
  const merged = mergeGap(gaps.at(-1), gap);
  if (merged) gaps[gaps.length - 1] = merged;
  else gaps.push(gap);
  gaps = gaps.slice(-100);
  showGaps();
  announce(`Messages are missing. ${gapInWords(gap)}`);
}

function showGaps() {
  $("missing").hidden = gaps.length === 0;
  $("gaps").replaceChildren(
    ...gaps.toReversed().map((gap) => {
      const item = document.createElement("li");
      item.textContent = gapInWords(gap);
      return item;
    }),
  );
}

function tick() {
  if (state.name === "waiting") $("state").textContent = stateInWords(state);
  if (document.hidden) return;
  const day = new Date().toDateString();
  if (day !== today) list.showDates();
  today = day;
  const rate = figures.draw();
  // Only new messages are read aloud, and only if they are few.
  const fresh = Date.now() - Math.max(began, list.loaded) > ALOUD_AFTER;
  $("scroller").ariaLive = fresh && rate <= ALOUD ? "polite" : "off";
}

function transport() {
  try {
    return localStorage.getItem("transport") === "websocket" ? "websocket" : "sse";
  } catch {
    return document.querySelector("[name=transport]:checked")?.value ?? "sse"; // storage may be forbidden
  }
}

function remember(value) {
  try {
    localStorage.setItem("transport", value);
  } catch {
    // the choice then lasts until the page is closed
  }
}
