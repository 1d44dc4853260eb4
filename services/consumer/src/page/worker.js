/** The SharedWorker behind client.js: one connection for all the tabs that read the same topic over the same transport. */
import { Link, weight } from "./link.js";

/** The limit of events kept for tabs that join later, and of a tab's unread events, by weight. */
const KEPT = 4_000_000;
const UNREAD = 8_000_000;
/** Tabs that catch up at the same time: a browser opens six connections per host, and one of them is shared. */
const MAX_CATCHING_UP = 4;
/** A tab sends a ping every 5 s, or every minute in the background; after this silence it is closed, crashed or frozen. */
const TAB_TIMEOUT = 200_000;

const hubs = new Map();
const tabs = new Set();

/** One shared connection, its newest events, and the tabs that read it. */
class Hub {
  tabs = new Set();
  state = { name: "connecting" };
  #key;
  #options;
  #start;
  #topic;
  #link;
  #ring = [];
  #weight = 0;
  #tail = null; // the cursor before the ring
  #head = null; // the cursor of the newest event
  #whole = true; // the ring still begins where the connection started

  constructor(key, options, start) {
    this.#key = key;
    this.#options = options;
    // The shared connection starts near the end of the log, so that no tab waits for one that starts far behind.
    this.#start = start.after || start.from ? {} : start;
    this.#link = new Link(options, this.#start, (events) => this.#take(events), (state) => this.#tell(state));
  }

  add(tab) {
    const { after, from, last } = tab.start;
    this.tabs.add(tab);
    if (this.#head) return this.#place(tab);
    tab.joined = !after && !from && last === this.#start.last;
    tab.tell(this.state);
  }

  remove(tab) {
    this.tabs.delete(tab);
    if (this.tabs.size === 0) this.#close();
  }

  wake() {
    this.#link.wake();
  }

  /** Lets a tab that has read up to `cursor` continue from here; false if the kept events do not reach back that far. */
  join(tab, cursor, first = []) {
    const missed = cursor && this.#missed(cursor);
    if (!missed) return false;
    tab.joined = true;
    tab.tell(this.state);
    tab.send([...first, ...missed], this.#head);
    return true;
  }

  #place(tab) {
    const cursor = tab.start.after ?? this.#newest(tab.start.last);
    if (!this.join(tab, cursor, [{ type: "start", cursor, topic: this.#topic }])) tab.catchUp(this.#options);
  }

  /** The cursor before the newest `count` messages, if they are all here. */
  #newest(count) {
    if (!(count > 0)) return null;
    let index = this.#ring.length;
    let found = 0;
    while (index > 0 && found < count) found += this.#ring[--index].type === "message";
    if (found < count && !(this.#whole && this.#start.last >= count)) return null;
    return index > 0 ? this.#ring[index - 1].cursor : this.#tail;
  }

  #take(events) {
    const first = !this.#head;
    for (const event of events) {
      this.#head = event.cursor ?? this.#head;
      if (event.type === "start") [this.#tail, this.#topic] = [event.cursor, event.topic];
      if (event.type !== "message" && event.type !== "gap") continue;
      this.#ring.push(event);
      this.#weight += weight(event);
      // After these gaps, offsets restart: earlier events cannot be compared with later ones.
      const resets = ["recreated", "truncated", "unknown-cursor"].includes(event.reason);
      while (this.#ring.length > 0 && (resets || this.#tail === null || this.#weight > KEPT)) {
        const oldest = this.#ring.shift();
        this.#weight -= weight(oldest);
        this.#tail = oldest.cursor; // null in a page of history, for a gap: then the next event is removed too
        this.#whole = false;
      }
    }
    for (const tab of [...this.tabs]) {
      if (tab.joined) tab.send(events, this.#head);
      else if (first && this.#head) this.#place(tab);
      else tab.meet();
    }
  }

  #tell(state) {
    this.state = state;
    if (state.name === "ended") this.#close();
    for (const tab of this.tabs) {
      // A request may be rejected because of another tab's start: then the other tabs try their own. Without a start, it is
      // rejected for all of them.
      if (state.name === "ended" && !tab.joined && this.#start.last !== undefined) tab.again();
      // A tab that is not here yet is not live because this connection is.
      else if (tab.joined || (!tab.catching && state.name !== "live")) tab.tell(state);
    }
  }

  #close() {
    this.#link.close();
    if (hubs.get(this.#key) === this) hubs.delete(this.#key);
  }

  /** The events that a tab at `cursor` has not seen; null when they are not all here. */
  #missed(cursor) {
    if (cursor === this.#head) return [];
    const [mine, tail, head] = [cursor, this.#tail, this.#head].map(positions);
    if (!mine || !tail || !head || mine.topic !== tail.topic) return null;
    if ([tail, head].some(({ id }) => mine.id && id && mine.id !== id)) return null;
    for (let partition = 0; partition < Math.max(mine.length, head.length); partition += 1) {
      const next = offset(mine, partition);
      if (next < offset(tail, partition) || next > offset(head, partition)) return null;
    }
    // The same offset after a different record: the topic was recreated since this tab read it.
    const others = [this.#tail, ...this.#ring.map((event) => event.cursor)].map(positions).filter(Boolean);
    const differ = (a, b) => a && b && a.next === b.next && a.record !== null && b.record !== null && a.record !== b.record;
    if (others.some((other) => mine.some((position, partition) => differ(position, other[partition])))) return null;

    const seen = (event) =>
      event.type === "message"
        ? event.offset < offset(mine, event.partition)
        : event.ranges.every((range) => range.to !== null && range.to <= offset(mine, range.partition));
    // Several partitions may have arrived in another order. Up to the last event that the tab has seen, cursors of the shared
    // connection do not apply to this tab: it would resume too early or too late with them.
    const apart = this.#ring.findLastIndex(seen);
    return this.#ring.map((event, index) => (index < apart ? { ...event, cursor: null } : event)).filter((event) => !seen(event));
  }
}

/** A stream of a tab, as the worker sees it. */
class Tab {
  static #turns = 0;
  static #queue = new Set();
  start;
  joined = false;
  lastReceived = performance.now();
  #port;
  #hub = null;
  #link = null; // its own connection, until it reaches the shared one
  #open = null;
  #unread = 0;
  #behind = false;

  constructor(port) {
    this.#port = port;
    port.onmessage = ({ data }) => this.#receive(data);
  }

  get catching() {
    return this.#link !== null;
  }

  tell(state) {
    this.#port.postMessage({ state });
  }

  /** Makes the tab join again with its cursor. */
  again() {
    this.leave();
    this.#port.postMessage({ again: true });
  }

  send(events, cursor) {
    if (this.#behind) return;
    this.#port.postMessage({ events, cursor });
    for (const event of events) this.#unread += weight(event);
    // A frozen tab reads nothing, and its unread events must not grow without limit.
    if (this.#unread <= UNREAD) return;
    this.#behind = true;
    this.joined = false;
    this.#settle();
  }

  /** Opens a connection at this tab's position, as soon as it is its turn. */
  catchUp(options) {
    this.#open = () => {
      Tab.#turns += 1;
      const take = (events, cursor) => {
        this.send(events, cursor);
        this.meet();
      };
      this.#link = new Link(options, this.start, take, (state) => this.tell(state));
    };
    if (Tab.#turns < MAX_CATCHING_UP) this.#open();
    else Tab.#queue.add(this);
  }

  meet() {
    if (this.#link && this.#hub.join(this, this.#link.cursor)) this.#settle();
  }

  leave() {
    this.joined = false;
    this.#settle();
    this.#hub?.remove(this);
    this.#hub = null;
    tabs.delete(this);
  }

  #settle() {
    Tab.#queue.delete(this);
    if (!this.#link) return;
    this.#link.close();
    this.#link = null;
    Tab.#turns -= 1;
    const [next] = Tab.#queue;
    Tab.#queue.delete(next);
    next?.#open();
  }

  #receive(data) {
    this.lastReceived = performance.now();
    if (data.do === "join") {
      const { url, topic, transport, binary, withCredentials } = data.options;
      const key = JSON.stringify([url, topic, transport, binary, withCredentials]);
      this.start = data.start;
      if (!hubs.has(key)) hubs.set(key, new Hub(key, data.options, data.start));
      this.#hub = hubs.get(key);
      this.#hub.add(this);
    } else if (data.do === "leave") {
      this.leave();
    } else if (data.do === "ping") {
      this.#port.postMessage(this.#hub ? {} : { again: true });
    } else if (data.do === "wake") {
      this.#link?.wake();
      this.#hub?.wake();
    } else if (data.do === "read") {
      this.#unread -= data.weight;
      if (this.#behind && this.#unread <= 0) this.again();
    }
  }
}

const offset = (vector, partition) => vector[partition]?.next ?? 0;

/**
 * The content of a cursor: two bytes of the topic's id, and per partition the next offset and a two-byte fingerprint of the record
 * before it. Cursors are opaque to other clients; here those of two tabs must be compared. An unknown version returns null, and then
 * tabs do not share.
 */
function positions(cursor) {
  if (typeof cursor !== "string" || !/^[\w-]+$/.test(cursor) || cursor.length % 4 === 1) return null;
  const bytes = Uint8Array.from(atob(cursor.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  if (bytes[0] !== 1 && bytes[0] !== 2) return null;
  const vector = [];
  vector.topic = bytes[1] * 256 + bytes[2];
  // Version 1 does not contain the topic's id; 0 is unknown.
  vector.id = bytes[0] === 2 ? bytes[3] * 256 + bytes[4] : 0;
  for (let at = bytes[0] === 2 ? 5 : 3; at < bytes.length; ) {
    let value = 0;
    let scale = 1;
    let byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte & 128);
    vector.push({ next: Math.floor(value / 2), record: value % 2 === 1 ? bytes[at++] * 256 + bytes[at++] : null });
  }
  return vector;
}

if ("SharedWorkerGlobalScope" in globalThis) {
  globalThis.onconnect = ({ ports: [port] }) => tabs.add(new Tab(port));
  setInterval(() => {
    for (const tab of tabs) if (performance.now() - tab.lastReceived > TAB_TIMEOUT) tab.leave();
  }, 10_000);
}
