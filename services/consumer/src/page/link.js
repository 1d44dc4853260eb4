/** One connection to the server that comes back by itself: at first to where it was told to start, later to its newest cursor. */

/** How often a link looks for silence, and what it takes for dead: three comments of the server (one every 15 s) have not come. */
const TICK = 5_000;
const SILENCE = 45_000;
/** A connection that lived this long was no failed attempt. */
const LIVED = 10_000;

/** What an event counts for where memory is bounded: its characters, and something for itself. */
export const weight = (event) => 1_000 + (event.data?.length ?? 0);

export class Link {
  cursor;
  #options;
  #start;
  #take;
  #tell;
  #began = false;
  #live = false;
  #away = null; // since when the consumer has been without Kafka
  #heard = 0;
  #bye = null;
  #cut = null; // ends the connection that there is
  #skip = null; // ends the wait for the next one
  #closed = false;
  #ticker;

  /** `take(events, cursor)` is given what arrives, `tell(state)` the state; both as client.js describes them. */
  constructor(options, start, take, tell) {
    this.cursor = start.after ?? null;
    this.#options = options;
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

  /** The network is back, or somebody looks: wait no longer, and trust no connection that has been silent for long. */
  wake() {
    this.#skip?.();
    this.#tick(SILENCE / 2);
  }

  async #run() {
    let attempt = 0;
    while (!this.#closed) {
      this.#tell({ name: "connecting" });
      const controller = new AbortController();
      const opened = Date.now();
      this.#heard = opened;
      this.#live = false;
      this.#away = null; // whoever connects while Kafka is away is told
      this.#bye = null;
      this.#cut = () => controller.abort();
      const read = this.#options.transport === "websocket" ? this.#frames : this.#lines;
      const end = await read.call(this, controller.signal).catch(() => ({}));
      this.#cut = null;
      if (this.#closed) return;
      const { reason, retry, detail, final } = { ...end, ...this.#bye };
      if (final || reason === "invalid") {
        this.close();
        return this.#tell({ name: "ended", reason: detail ?? reason });
      }
      if (Date.now() - opened > LIVED) attempt = 0;
      // Full jitter: the clients of a server that died come back spread over the whole interval, not in waves.
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

  /**
   * Server-sent events, read with fetch. An EventSource hides the comments, so that a connection which died without
   * a word looks idle for ever; and it is dead for good after any status but 200.
   */
  async #lines(signal) {
    const response = await fetch(this.#address("events", { format: "json" }), { signal, cache: "no-store" });
    if (response.status !== 200) {
      const { error } = await response.json().catch(() => ({}));
      const retry = Number(response.headers.get("retry-after")) * 1_000 || undefined;
      return { final: error !== undefined && response.status < 429, reason: error ?? `status ${response.status}`, retry };
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let name;
    let data;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return {};
      this.#heard = Date.now();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      const events = [];
      for (const line of lines) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data = line.slice(5);
        else if (line === "") {
          if (data) events.push({ type: name ?? "message", ...JSON.parse(data) });
          name = data = undefined;
        }
      }
      this.#receive(events);
    }
  }

  #frames(signal) {
    return new Promise((resolve) => {
      const address = this.#address("ws");
      address.protocol = address.protocol.replace("http", "ws");
      const socket = new WebSocket(address);
      const end = (reason) => {
        socket.onmessage = socket.onclose = signal.onabort = null;
        socket.close();
        resolve({ reason });
      };
      socket.onmessage = ({ data }) => {
        this.#heard = Date.now();
        this.#receive([JSON.parse(data)]);
      };
      socket.onclose = ({ code }) => end(code === 4400 ? "invalid" : undefined);
      signal.onabort = () => end();
    });
  }

  #receive(events) {
    if (this.#closed) return;
    const passed = [];
    for (const event of events) {
      this.cursor = event.cursor ?? this.cursor;
      if (event.type === "start") this.#live = true;
      if (event.type === "bye") this.#bye = event;
      if (event.type === "status") this.#away = event.source === "down" ? event.since : null;
      if (event.type === "status" || event.type === "start") this.#tell(this.#away ? { name: "away", since: this.#away } : { name: "live" });
      if (event.type !== "start" || !this.#began) passed.push(event);
      this.#began ||= event.type === "start";
    }
    if (passed.length > 0) this.#take(passed, this.cursor);
  }

  #tick(limit) {
    if (!this.#cut || Date.now() - this.#heard < limit) return;
    if (this.#options.transport === "websocket" && this.#live) this.#ask();
    else this.#cut();
  }

  /** Browsers hide pings as well, so the server is asked: is there anything that should have come over this WebSocket by now? */
  async #ask() {
    this.#heard = Date.now();
    const [cut, before] = [this.#cut, this.cursor];
    const signal = AbortSignal.timeout(TICK);
    const page = await fetch(this.#address("messages", { limit: 1 }), { signal, cache: "no-store" })
      .then((response) => (response.status === 503 ? { messages: [], gaps: [] } : response.json()))
      .catch(() => null);
    if (page?.messages?.length === 0 && page.gaps.length === 0) return;
    setTimeout(() => this.cursor === before && cut(), TICK); // what has just been written may still be on its way
  }
}
