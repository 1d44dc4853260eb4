/** The example videos with their counts in each window, and a button to like them. */
import { sentenceOf } from "./sentence.js";
import { follow, stateInWords } from "./stream.js";

/** Final results that are shown of each window. */
const HISTORY = 6;

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const time = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** The windows of each video: by its identifier, then by the window's name. */
const videos = new Map();
/** Whether the open windows are known. */
let hasInterim = true;

start();

async function start() {
  let list;
  try {
    const answer = await fetch("videos/metadata", { cache: "no-store" });
    const text = await answer.text();
    if (answer.status === 401) {
      state("signed-out", `Not signed in: ${sentenceOf(text)}.`);
      return setTimeout(start, 5_000);
    }
    if (answer.status === 404) return state("off", `${sentenceOf(text)}.`);
    if (!answer.ok) throw new Error(sentenceOf(text));
    list = JSON.parse(text);
  } catch (error) {
    const reason = error instanceof TypeError ? "the gateway cannot be reached" : error.message;
    state("waiting", `The videos cannot be read: ${reason}.`);
    setTimeout(start, 5_000);
    return;
  }
  if (list.length === 0) return state("off", "There are no videos to like; --videos lists them.");
  $("videos").replaceChildren(...list.map(card));
  const query = new URLSearchParams(list.slice(0, 20).map(({ unique_identifier: id }) => ["video", id]));
  follow(`windows/stream?${query}`, {
    start({ windows, interim }) {
      hasInterim = interim;
      for (const [id, of] of videos) for (const window of windows) if (!of.has(window.type)) of.set(window.type, addWindow(id, window));
    },
    snapshot(rows) {
      for (const windows of videos.values()) windows.forEach((window) => window.rows.clear());
      rows.forEach(take);
      videos.forEach((windows) => windows.forEach((window) => draw(window, false)));
    },
    change(rows) {
      new Set(rows.map(take)).forEach((window) => window && draw(window, true));
    },
    state,
  });
}

function state(state, sentence) {
  document.documentElement.dataset.state = { off: "ended", "signed-out": "waiting" }[state] ?? state;
  $("state").textContent = stateInWords[state];
  $("spoken").textContent = sentence;
  $("notice").textContent = sentence;
  $("notice").hidden = state === "live";
  if (state === "off") $("legend").hidden = true;
}

/** Keeps a result; returns its window. */
function take(row) {
  const window = videos.get(row.video_uid)?.get(row.type);
  window?.rows.set(row.start, row);
  return window;
}

function card({ unique_identifier: id, title }) {
  const section = element("section", "video");
  const head = element("div", "head");
  const button = element("button", "", "Like");
  button.type = "button";
  button.setAttribute("aria-label", `Like ${title || id}`);
  const answer = element("p", "help answer");
  answer.setAttribute("role", "status");
  button.addEventListener("click", () => like(id, button, answer));
  head.append(element("h2", "", title || id), element("span", "id", id), button, answer);
  const windows = element("div", "windows");
  section.append(head, windows);
  section.setAttribute("aria-label", title || id);
  videos.set(id, Object.assign(new Map(), { box: windows }));
  return section;
}

function addWindow(id, { type, seconds }) {
  const box = element("div", "window");
  const now = element("p", "now");
  const count = element("strong", "", "–");
  const about = element("span", "", "so far");
  now.append(count, about);
  const history = element("ol", "history");
  const size = seconds % 60 ? `${seconds} seconds` : seconds === 60 ? "1 minute" : `${seconds / 60} minutes`;
  box.append(element("h3", "", size), now, history);
  videos.get(id).box.append(box);
  return { type, id, count, about, history, rows: new Map() };
}

/** Shows the open window and the final results, newest first. */
function draw({ type, id, count, about, history, rows }, isNew) {
  const all = [...rows.values()].sort((a, b) => b.start - a.start);
  for (const { start } of all.slice(HISTORY + 5)) rows.delete(start);
  const finals = all.filter((row) => row.final);
  const interim = all.find((row) => !row.final);
  // An interim count of a window that is over, or older than a final one, is none of the open window.
  const open = interim && (!finals[0] || interim.start > finals[0].start) ? interim : null;
  show(count, hasInterim ? number.format(open?.count ?? 0) : "–", isNew);
  about.textContent = !hasInterim ? "no interim counts" : open ? `so far, until ${time.format(open.end)}` : "so far";
  const lines = finals.slice(0, HISTORY).map((row) => {
    const line = element("li", "");
    const link = element("a", "", `${time.format(row.start)} – ${time.format(row.end)}`);
    link.href = `windows/${type}/${row.start}/${encodeURIComponent(id)}/messages`;
    line.append(link, element("span", "", number.format(row.count)));
    if (isNew && history.dataset.newest && row.start > Number(history.dataset.newest)) line.className = "new";
    return line;
  });
  history.dataset.newest = finals[0]?.start ?? 0;
  history.replaceChildren(...(lines.length > 0 ? lines : [element("li", "none", "No final results yet")]));
}

/** Writes a text, and highlights it if it is another one. */
function show(target, text, isNew) {
  if (target.textContent === text) return;
  target.textContent = text;
  if (!isNew) return;
  target.classList.remove("new");
  void target.offsetWidth; // restarts the animation
  target.classList.add("new");
}

/** Publishes a like. The button keeps the focus meanwhile, which a disabled one would lose. */
async function like(id, button, answer) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  answer.classList.remove("bad");
  let status = 0;
  try {
    const response = await fetch(`videos/${encodeURIComponent(id)}/likes`, { method: "POST", signal: AbortSignal.timeout(20_000) });
    status = response.status;
    const text = await response.text();
    if (!response.ok) throw new Error(sentenceOf(text));
    answer.textContent = "Kafka has your like; it is counted in a moment.";
  } catch (error) {
    const isRejected = status >= 400 && status < 500;
    answer.textContent = `Your like ${isRejected ? "was not" : "may not have been"} published: ${reasonOf(error)}.`;
    answer.classList.add("bad");
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

function reasonOf(error) {
  if (error instanceof TypeError) return "the gateway cannot be reached";
  return error.name === "TimeoutError" ? "the gateway did not answer within 20 seconds" : error.message;
}

function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}
