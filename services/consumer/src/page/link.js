/** One connection to the server that reconnects automatically: at first from the given start, later from its newest cursor. */

/** How often a link checks for silence, and after which silence it is dead: three of the server's comments (one every 15 s) are missing. */
const TICK = 5_000;
const SILENCE = 45_000;
/** A connection that lasted this long does not count as a failed attempt. */
const STABLE = 10_000;
/** The server writes immediately: a transport that has delivered nothing after this time is blocked on the way. */
const FIRST_BYTES = 8_000;
/** Transports in the order in which they are tried if one is blocked; polling works wherever a page can be loaded. */
const TRANSPORTS = ["sse", "websocket", "polling"];
/** After this time on another transport, the preferred one is retried. */
const FALLBACK = 300_000;
/** The reasons of the server that are the same for the next attempt, and the codes with which it closes a WebSocket for them. */
const FINAL = ["invalid", "unauthenticated", "forbidden"];
const CODES = { 4400: "invalid", 4403: "forbidden" };
/** The delay between two polls of a quiet topic. */
const POLL = 2_000;

/** Per server and preferred transport: the transport used instead, and since when. Shared by all connections of this page or worker. */
const fallbacks = new Map();

/** The memory that an event counts for: its characters, and a fixed overhead. */
export const weight = (event) => 1_000 + (event.data?.length ?? 0);

export class Link {
  cursor;
  #options;
  #start;
  #take;
  #tell;
  #transport; // the transport in use, which may not be the preferred one
  #arrived = false; // whether the connection has delivered anything
  #polled = false; // whether polling has worked and the streams have not, since then
  #began = false;
  #live = false;
  #away = null; // since when the topic cannot be read, and why
  #lastReceived = 0;
  #bye = null;
  #cut = null; // ends the current connection
  #skip = null; // ends the wait for the next one
  #closed = false;
  #ticker;

  /** `take(events, cursor)` receives the events, `tell(state)` the state; client.js describes both. */
  constructor(options, start, take, tell) {
    this.cursor = start.after ?? null;
    this.#options = options;
    this.#transport = options.transport;
    this.#start = start;
    this.#take = take;
    this.#tell = tell;
    this.#ticker = setInterval(() => this.#tick(SILENCE), TICK);
    this.#run();
  }

  close() {
    this.#closed = true;
    clearInterval(this.#ticker);
    this.#cut?.();
    this.#skip?.();
  }

  /** The network is back, or the page is visible again: stop waiting, and check a connection that has been silent for long. */
  wake() {
    this.#skip?.();
    this.#tick(SILENCE / 2);
  }

  async #run() {
    const { url, transport: preferred } = this.#options;
    const order = [preferred, ...TRANSPORTS.filter((transport) => transport !== preferred)];
    const key = `${preferred} ${url}`;
    let attempt = 0;
    let retrying = false; // the preferred transport, while polling would still work
    while (!this.#closed) {
      const opened = performance.now();
      if (opened - fallbacks.get(key)?.at > FALLBACK) fallbacks.delete(key);
      this.#transport = fallbacks.get(key)?.transport ?? preferred;
      if (!retrying) this.#tell({ name: "connecting" });
      const controller = new AbortController();
      this.#lastReceived = opened;
      this.#arrived = false;
      this.#live = false;
      this.#away = null; // a client that connects while the topic cannot be read is notified
      this.#bye = null;
      this.#cut = () => controller.abort();
      const read = { sse: this.#lines, websocket: this.#frames, polling: this.#pages }[this.#transport];
      const late = setTimeout(() => this.#arrived || controller.abort(), FIRST_BYTES);
      const end = await read.call(this, controller.signal).catch(() => ({}));
      clearTimeout(late);
      this.#cut = null;
      if (this.#closed) return;
      retrying = end.next === true;
      if (retrying) continue;
      // A rejected WebSocket may be due to a full server: then it is retried once.
      const refused = this.#transport === "websocket" && (attempt > 0 || this.#polled);
      const blocked = !this.#arrived && (controller.signal.aborted || refused);
      if (blocked && (await this.#isReachable())) {
        // Another connection may already have found a transport that works.
        const known = fallbacks.get(key)?.transport ?? this.#transport;
        const next = known === this.#transport ? order[(order.indexOf(known) + 1) % order.length] : known;
        if (next === preferred) fallbacks.delete(key);
        else fallbacks.set(key, { transport: next, at: performance.now() });
        retrying = this.#polled;
        continue;
      }
      const { reason, retry, detail, final } = { ...end, ...this.#bye };
      if (final || FINAL.includes(reason)) {
        this.close();
        return this.#tell({ name: "ended", reason: detail ?? reason });
      }
      if (performance.now() - opened > STABLE) attempt = 0;
      // Full jitter: the clients of a server that died reconnect spread over the whole interval, not in waves.
      const wait = retry ?? Math.random() * Math.min(30_000, 1_000 * 2 ** attempt);
      attempt += 1;
      this.#tell({ name: "waiting", until: Date.now() + wait, reason: reason ?? "cut" });
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait);
        this.#skip = () => resolve(clearTimeout(timer));
      });
      this.#skip = null;
    }
  }

  #address(path, extra) {
    const { url, topic, binary } = this.#options;
    const start = this.cursor ? { after: this.cursor } : this.#start;
    const query = Object.entries({ topic, binary: binary ? "base64" : null, ...start, ...extra });
    const address = new URL(path, url);
    address.search = new URLSearchParams(query.filter(([, value]) => value !== undefined && value !== null));
    return address;
  }

  /** A request, with a token if the page has one. */
  async #request(address, signal, method = "GET") {
    const { token, withCredentials } = this.#options;
    const headers = {};
    if (token) {
      const aborted = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
      headers.authorization = `Bearer ${await Promise.race([token(), aborted])}`;
    }
    return fetch(address, { method, signal, headers, cache: "no-store", credentials: withCredentials ? "include" : "same-origin" });
  }

  /** How a connection ends that was answered so. With another token, a 401 may be answered otherwise. */
  #failed({ status, headers }, { error }) {
    const isFinal = status < 429 && !(status === 401 && this.#options.token);
    const retry = Number(headers.get("retry-after")) * 1_000 || undefined;
    return { final: error !== undefined && isFinal, reason: error ?? `status ${status}`, retry };
  }

  /** Whether the server answers ordinary requests: then it is not the server that blocks a transport. */
  #isReachable() {
    const signal = AbortSignal.timeout(TICK);
    return this.#request(this.#address("config"), signal).then(
      (response) => response.ok,
      () => false,
    );
  }

  /**
   * Server-sent events, read with fetch. An EventSource hides the comments, so that a connection that died silently looks idle
   * forever; and it never reconnects after a status other than 200.
   */
  async #lines(signal) {
    const response = await this.#request(this.#address("events", { format: "json" }), signal);
    if (response.status !== 200) {
      return this.#failed(response, await response.json().catch(() => ({})));
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let id;
    let name;
    let data;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return {};
      this.#lastReceived = performance.now();
      this.#arrived = true;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      const events = [];
      for (const line of lines) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data = line.slice(5);
        else if (line.startsWith("id:")) id = line.slice(3).trim();
        else if (line === "") {
          if (data) events.push({ type: name ?? "message", ...parsed(data, id) });
          id = name = data = undefined;
        }
      }
      this.#receive(events);
    }
  }

  /** A WebSocket of a browser has no headers, so a ticket in its address stands for the token. */
  async #frames(signal) {
    let ticket;
    if (this.#options.token) {
      const response = await this.#request(new URL("tickets", this.#options.url), signal, "POST");
      const body = await response.json().catch(() => ({}));
      if (!response.ok) return this.#failed(response, body);
      ticket = body.ticket;
    }
    return new Promise((resolve) => {
      const address = this.#address("ws", { ticket });
      address.protocol = address.protocol.replace("http", "ws");
      const socket = new WebSocket(address);
      const end = (reason) => {
        socket.onmessage = socket.onclose = signal.onabort = null;
        socket.close();
        resolve({ reason });
      };
      socket.onmessage = ({ data }) => {
        this.#lastReceived = performance.now();
        this.#arrived = true;
        this.#receive([parsed(data)]);
      };
      socket.onclose = ({ code }) => end(CODES[code]);
      signal.onabort = () => end();
    });
  }

  /** Polls pages of history, if every stream is blocked. Returns after a while, to retry the streams. */
  async #pages(signal) {
    const begun = performance.now();
    const { from, last } = this.#start;
    while (performance.now() - begun < FALLBACK && !this.#closed) {
      const limit = this.cursor || from ? 500 : Math.max(1, last ?? 1);
      this.#lastReceived = performance.now(); // a poll without a response is cut like any connection
      const response = await this.#request(this.#address("messages", { limit, last: undefined }), signal);
      const body = await response.json().catch(() => ({}));
      this.#lastReceived = Infinity; // until the next poll, silence means nothing
      this.#arrived = true;
      const retry = Number(response.headers.get("retry-after")) * 1_000 || undefined;
      let pause = POLL * (0.75 + Math.random() / 2);
      if (response.status === 503 && body.error) {
        if (!this.#away) this.#receive([{ type: "status", source: "down", since: new Date().toISOString() }]);
        pause = Math.max(pause, retry ?? 0);
      } else if (!response.ok) {
        return this.#failed(response, body);
      } else {
        // Without a start, only messages after this page are new.
        const skip = !this.cursor && !from && !(last > 0);
        const events = skip ? [] : inOrder(body).map((event) => (event.reason ? { type: "gap", cursor: null, ...event } : event));
        const quiet = events.length === 0;
        if (!quiet) events.at(-1).cursor = body.after;
        else if (this.cursor && this.cursor !== body.after) events.push({ type: "position", cursor: body.after });
        if (this.#away) events.unshift({ type: "status", source: "up", since: new Date().toISOString() });
        if (!this.#live) events.unshift(await this.#startOf(quiet ? body.after : body.before, signal));
        this.#polled = true;
        this.#receive(events);
        if (!quiet) continue;
      }
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause);
        this.#skip = signal.onabort = () => resolve(clearTimeout(timer));
      });
      this.#skip = null;
    }
    return { next: true };
  }

  /** The first event, as a stream would deliver it; its cursor is null if the page begins with the topic. */
  async #startOf(before, signal) {
    let { topic } = this.#options;
    topic ??= await this.#request(this.#address("config"), signal).then(
      async (response) => (await response.json()).topic,
      () => undefined,
    );
    return { type: "start", cursor: this.cursor ?? before, topic };
  }

  #receive(events) {
    if (this.#closed) return;
    const passed = [];
    for (const event of events) {
      this.cursor = event.cursor ?? this.cursor;
      if (event.type === "start") {
        this.#live = true;
        this.#polled &&= this.#transport === "polling";
      }
      if (event.type === "bye") this.#bye = event;
      if (event.type === "status") this.#away = event.source === "down" ? { since: event.since, reason: event.reason } : null;
      if (event.type === "status" || event.type === "start") this.#tell(this.#state());
      if (event.type !== "start" || !this.#began) passed.push(event);
      this.#began ||= event.type === "start";
    }
    if (passed.length === 0) return;
    try {
      this.#take(passed, this.cursor);
    } catch (error) {
      console.error("events cannot be delivered", error); // the next ones may
    }
  }

  #state() {
    const state = this.#away ? { name: "away", ...this.#away } : { name: "live" };
    return this.#transport === this.#options.transport ? state : { ...state, transport: this.#transport };
  }

  #tick(limit) {
    if (!this.#cut || performance.now() - this.#lastReceived < limit) return;
    if (this.#transport === "websocket" && this.#live) this.#checkWebSocket();
    else this.#cut();
  }

  /** Browsers also hide pings, so this queries the server for messages that should have arrived over this WebSocket by now. */
  async #checkWebSocket() {
    this.#lastReceived = performance.now();
    const [cut, before] = [this.#cut, this.cursor];
    const signal = AbortSignal.timeout(TICK);
    const page = await this.#request(this.#address("messages", { limit: 1 }), signal)
      .then((response) => (response.status === 503 ? { messages: [], gaps: [] } : response.json()))
      .catch(() => null);
    if (page?.messages?.length === 0 && page.gaps.length === 0) return;
    setTimeout(() => this.cursor === before && cut(), TICK); // a message that was just written may still be in transit
  }
}

/** Parses an event. One that is not a JSON object becomes a gap, without affecting the others. */
function parsed(data, cursor = null) {
  try {
    const event = JSON.parse(data);
    if (event !== null && typeof event === "object") return event;
  } catch {
    // reported below
  }
  console.error("an event cannot be parsed", data);
  return { type: "gap", cursor, reason: "not-parsed", ranges: [] };
}

/** The messages and gaps of a page in one order: a gap precedes the first message of its partition after it. */
export function inOrder({ messages, gaps }) {
  const events = [...messages];
  for (const gap of gaps) {
    // After a truncation, and in a new log, offsets restart.
    const next = ({ from, to }) => (gap.reason === "truncated" ? from : (to ?? 0));
    const behind = (event) => event.reason === undefined && gap.ranges.some((r) => r.partition === event.partition && next(r) <= event.offset);
    const index = gap.ranges?.length ? events.findIndex(behind) : 0;
    events.splice(index < 0 ? events.length : index, 0, gap);
  }
  return events;
}
