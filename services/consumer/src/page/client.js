/**
 * Reads a topic from Herald in the browser: resumes after every disconnection, and shares one connection between all tabs.
 *
 *     import { connect } from "/client.js";
 *     const stream = connect({ last: 50 });
 *     stream.addEventListener("message", ({ detail }) => console.log(detail.data));
 *     stream.addEventListener("gap", ({ detail }) => console.warn(detail.reason, detail.ranges));
 *     stream.addEventListener("state", ({ detail }) => console.info(detail.name));
 *
 * Parameters of `connect`, all optional:
 *
 *     url        the consumer's address; by default, the server that this file came from
 *     topic      the topic; by default, the first one that the consumer serves
 *     transport  "sse" or "websocket"; by default, "sse"
 *     after      a cursor to resume after
 *     from       "earliest", or an RFC 3339 time
 *     last       start with the newest n messages. Without after, from and last: live messages only
 *     binary     true: values that are not UTF-8 are delivered as {base64: "…"}, instead of a gap each
 *     shared     false: use a separate connection for this tab
 *     token      a function that returns the token of the user, or a promise of it; it is called before each request, so that a new
 *                token follows one that has expired. The tab has a connection of its own. A WebSocket is opened with a ticket
 *     withCredentials
 *                true: send the cookies of a server of another origin, which must list the page's in --allowed-origins. Tabs share a
 *                connection with the cookies that were there when it was opened: close the stream when its user signs out
 *
 * The stream is an EventTarget. Its events are those of the protocol (docs/protocol.md) with the object in `detail`: `start`
 * (once), `message`, `gap`, `position`, `status`, `bye`; and `state`, whenever `stream.state` has changed, which is all that a page must show:
 *
 *     { name: "connecting" }                 no response yet
 *     { name: "live" }                       connected, and the consumer can read the topic
 *     { name: "away", since, reason }        connected, but the topic cannot be read: silence does not mean that there are no messages
 *     { name: "waiting", until, reason }     disconnected; reconnects at `until` (ms since 1970)
 *     { name: "ended", reason }              permanently: closed, or the request cannot be served
 *
 * If a proxy blocks a transport (nothing arrives within 8 seconds, or WebSockets are rejected), the next one is tried: the
 * preferred one first, then server-sent events, WebSocket, and polling of `messages`. The state then contains it,
 * `{ name: "live", transport: "polling" }`. The preferred one is retried after five minutes: immediately when polling, otherwise at the
 * next reconnect. (When polling, the cursor of `start` is null if the first page begins with the topic, and that of a gap may be null.)
 *
 * An event from the server that is not JSON becomes a gap with the reason `not-parsed` and no ranges.
 *
 * `stream.cursor` is the position after the last delivered event: store it, and pass it as `after` to resume later. (An event's own
 * `cursor` may be null while a tab joins the others; then keep the previous one.) `stream.close()` ends the stream.
 *
 * Each message after the start is delivered exactly once and in the order of its partition, or lies in exactly one gap.
 *
 * Tabs share through a SharedWorker (worker.js), which holds one connection per topic and transport. There is no leader tab, so any
 * of them may close. Every tab has its own cursor: if the worker dies, or the tab was frozen and has lagged, the tab resumes at the
 * worker with it, as it would at the server. Limits:
 *
 * - Tabs share within one browser profile and origin; these files (client.js, link.js, worker.js) must be on the page's origin.
 * - At most four tabs with different starts catch up at a time; the next one waits for its turn.
 * - A dead worker is detected within 20 seconds, by a hidden tab within four minutes (browsers throttle its timers).
 * - Without SharedWorker support, each tab has its own connection. Over SSE, a tab closes it when hidden for 30 seconds, because
 *   a browser opens only six per host, and catches up when it is shown again.
 */
import { Link, weight } from "./link.js";

export function connect(options = {}) {
  return new Stream(options);
}

const TICK = 5_000;
const HIDDEN = 30_000;

class Stream extends EventTarget {
  cursor = null;
  state = { name: "connecting" };
  #options;
  #start;
  #source = null; // a Link or a Shared; null while the page is away
  #sharing;
  #began = false;
  #hidden;

  constructor({ after, from, last, ...options }) {
    super();
    const url = new URL(options.url ?? new URL(".", import.meta.url), location.href).href.replace(/\/?$/, "/");
    this.#options = { ...options, transport: options.transport ?? "sse", url };
    this.#start = { after, from, last };
    this.#sharing = options.shared !== false && !options.token && "SharedWorker" in globalThis && new URL(import.meta.url).origin === location.origin;
    addEventListener("pagehide", this.#leave);
    addEventListener("pageshow", this.#open);
    addEventListener("online", this.#wake);
    document.addEventListener("visibilitychange", this.#look);
    this.#open();
  }

  close(reason = "closed") {
    removeEventListener("pagehide", this.#leave);
    removeEventListener("pageshow", this.#open);
    removeEventListener("online", this.#wake);
    document.removeEventListener("visibilitychange", this.#look);
    this.#leave();
    this.#tell({ name: "ended", reason });
  }

  #open = () => {
    if (this.#source) return;
    const start = () => (this.cursor ? { after: this.cursor } : this.#start);
    const tell = (state) => (state.name === "ended" ? this.close(state.reason) : this.#tell(state));
    const alone = () => {
      this.#sharing = false;
      this.#source = null;
      this.#open();
    };
    this.#source = this.#sharing
      ? new Shared(this.#options, start, this.#take, tell, alone)
      : new Link(this.#options, start(), this.#take, tell);
  };

  // The browser may keep a page in its back/forward cache: it must hold no connection there, and resumes with its cursor when shown again.
  #leave = () => {
    clearTimeout(this.#hidden);
    this.#source?.close();
    this.#source = null;
  };

  #look = () => {
    clearTimeout(this.#hidden);
    if (!document.hidden) {
      this.#open();
      this.#wake();
    } else if (!this.#sharing && this.#options.shared !== false && (this.state.transport ?? this.#options.transport) === "sse") {
      this.#hidden = setTimeout(this.#leave, HIDDEN);
    }
  };

  #wake = () => this.#source?.wake();

  #take = (events, cursor) => {
    const source = this.#source;
    for (const event of events) {
      this.cursor = event.cursor ?? this.cursor;
      if (event.type === "start" && this.#began) continue;
      this.#began ||= event.type === "start";
      if (event.type !== "state") this.dispatchEvent(new CustomEvent(event.type, { detail: event }));
      if (this.#source !== source) return; // a listener has closed the stream
    }
    this.cursor = cursor ?? this.cursor;
  };

  #tell(state) {
    if (JSON.stringify(state) === JSON.stringify(this.state)) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}

/** The tab's end of a connection that the worker holds; it has the same methods as a Link. */
class Shared {
  #options;
  #start;
  #take;
  #tell;
  #fail;
  #port = null;
  #unanswered = 0;
  #answered = true; // whether the worker has sent anything since it was opened
  #ticker;

  /** `start()` returns the position to resume from; `fail()` is called if no worker is available. */
  constructor(options, start, take, tell, fail) {
    this.#options = options;
    this.#start = start;
    this.#take = take;
    this.#tell = tell;
    this.#fail = fail;
    this.#ticker = setInterval(() => this.#tick(), TICK);
    this.#open();
  }

  close() {
    clearInterval(this.#ticker);
    this.#leave();
  }

  wake() {
    this.#port?.postMessage({ do: "wake" });
  }

  #leave() {
    this.#port?.postMessage({ do: "leave" });
    this.#port?.close();
    this.#port = null;
  }

  #open() {
    this.#leave();
    this.#unanswered = 0;
    this.#answered = false;
    // The number is the version of the protocol between tab and worker: after an update, older tabs keep their own worker.
    const worker = new SharedWorker(new URL("worker.js", import.meta.url), { type: "module", name: "herald 2" });
    const port = worker.port;
    this.#port = port;
    worker.onerror = () => this.#port === port && this.#giveUp();
    port.onmessage = ({ data }) => this.#port === port && this.#receive(data);
    port.postMessage({ do: "join", options: this.#options, start: this.#start() });
  }

  #receive({ events, cursor, state, again }) {
    this.#unanswered = 0;
    this.#answered = true;
    if (again) return this.#open();
    if (state) this.#tell(state);
    if (!events) return;
    this.#take(events, cursor);
    this.#port?.postMessage({ do: "read", weight: events.reduce((sum, event) => sum + weight(event), 0) });
  }

  // There is no notification when a worker dies with its process, so it is pinged.
  #tick() {
    this.#unanswered += 1;
    if (this.#unanswered < 4) this.#port?.postMessage({ do: "ping" });
    else if (this.#answered) this.#open();
    else this.#giveUp();
  }

  #giveUp() {
    this.close();
    this.#fail();
  }
}
