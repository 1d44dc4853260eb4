/**
 * A consumer without Kafka, which does on command what is hard to have from a real one: lines that are cut, that fall silent, that end
 * with a reason; replicas that saw the partitions in another order. It serves the page's own files.
 */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { crc32 } from "node:zlib";
import { WebSocketServer } from "ws";

const FILES = new URL("../../services/consumer/src/page/", import.meta.url);
const KINDS = { html: "text/html", css: "text/css", js: "text/javascript" };
const POLICY =
  "default-src 'none'; script-src 'self' 'sha256-aeYx85mVCNrXH5e4wvlGrh2WclmPOJlfFHEvtnE/2ls='; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
  "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export async function startFake(options = {}) {
  const fake = new Fake(options);
  await new Promise((resolve) => fake.server.listen(0, "127.0.0.1", resolve));
  fake.url = `http://127.0.0.1:${fake.server.address().port}/`;
  return fake;
}

class Fake {
  streams = new Set();
  opened = 0;
  /** An answer instead of each stream: {status, headers, body}. */
  refusal = null;
  /** Whether a page of history is answered 503. */
  noHistory = false;
  away = null;
  /** What something on the way does not let through: "streams", or only "websocket"; and whether it swallows polls. */
  heldBack = null;
  noAnswer = false;
  /** After so many records, a stream pauses for a tenth of a second. */
  burst = Infinity;

  /** Two bytes of the topic's id, as cursors name it. */
  id = 4711;

  constructor({ topic = "dev-topic", topics = [topic], partitions = 1, clock = 0 }) {
    this.topic = topic;
    this.topics = topics;
    this.clock = clock;
    this.partitions = Array.from({ length: partitions }, () => ({ begin: 0, records: [] }));
    this.server = createServer((request, response) => this.#answer(request, response));
    const sockets = new WebSocketServer({ noServer: true });
    this.server.on("upgrade", (request, socket, head) => {
      if (this.heldBack) return socket.end("HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\n\r\n");
      if (this.refusal) return socket.end(`HTTP/1.1 ${this.refusal.status} No\r\nconnection: close\r\n\r\n`);
      sockets.handleUpgrade(request, socket, head, (ws) => {
        const line = {
          send: (event) => ws.send(JSON.stringify(event)),
          sendRaw: (text) => ws.send(text),
          end: (event) => ws.close({ invalid: 4400, slow: 4408 }[event.reason] ?? 1012, event.reason),
          destroy: () => ws.terminate(),
        };
        ws.on("close", () => this.#forget(line));
        this.#stream(line, new URL(request.url, "http://fake").searchParams);
      });
    });
  }

  async close() {
    this.server.closeAllConnections();
    for (const stream of this.streams) stream.line.destroy();
    await new Promise((resolve) => this.server.close(resolve));
  }

  // What happens in Kafka.

  publish(data, { partition = 0, timestamp = Date.now(), gap = null } = {}) {
    const { begin, records } = this.partitions[partition];
    records.push({ partition, offset: begin + records.length, timestamp, key: null, headers: {}, data, gap });
    this.pump();
  }

  /** Several at once: each stream sees their partitions in an order of its own. */
  publishAll(list) {
    this.held = true;
    for (const { data, ...where } of list) this.publish(data, where);
    this.held = false;
    this.pump();
  }

  deleteBefore(partition, offset) {
    const { begin, records } = this.partitions[partition];
    this.partitions[partition] = { begin: offset, records: records.slice(offset - begin) };
  }

  recreate() {
    this.id += 1;
    this.partitions = this.partitions.map(() => ({ begin: 0, records: [] }));
    this.pump();
  }

  /** Sends an event as it is, with the cursor of each stream. */
  say(event) {
    for (const stream of this.streams) stream.line.send({ cursor: this.#cursor(stream.vector), ...event });
  }

  /** Sends this text as the data of an event, with the cursor of each stream where the transport has room for one. */
  sayRaw(text) {
    for (const stream of this.streams) stream.line.sendRaw(text, this.#cursor(stream.vector));
  }

  /** The end of a partition's log is lost from this offset on. */
  truncate(partition, offset) {
    const { begin, records } = this.partitions[partition];
    for (const stream of this.streams) {
      const to = stream.vector[partition];
      stream.vector[partition] = offset;
      records.length = offset - begin;
      stream.line.send({ type: "gap", reason: "truncated", cursor: this.#cursor(stream.vector), ranges: [{ partition, from: offset, to }] });
    }
  }

  /** The same position as version 1 of the cursor says it. */
  versionOne(cursor) {
    return this.#cursor(this.vector(cursor), 1);
  }

  lose(reason) {
    this.reason = reason;
    this.away = new Date().toISOString();
    for (const stream of this.streams) this.#status(stream, "down");
  }

  find() {
    for (const stream of this.streams) this.#status(stream, "up");
    this.away = null;
  }

  // What happens to lines.

  /** Cuts every stream without a word. */
  cut() {
    for (const stream of this.streams) stream.line.destroy();
    this.streams.clear();
  }

  /** From now on nothing comes over the streams that there are, not even an end. */
  silence() {
    this.streams.clear();
  }

  bye(reason, retry) {
    for (const stream of this.streams) {
      const event = { type: "bye", cursor: this.#cursor(stream.vector), reason, retry };
      stream.line.send(event);
      stream.line.end(event);
    }
    this.streams.clear();
  }

  pump() {
    if (this.held) return;
    for (const stream of this.streams) this.#pump(stream);
  }

  // The protocol.

  async #answer(request, response) {
    const url = new URL(request.url, "http://fake");
    const json = (status, body, headers = {}) => {
      response.writeHead(status, { "content-type": "application/json", date: this.#date(), ...headers });
      response.end(JSON.stringify(body));
    };
    const path = url.pathname.slice(1) || "index.html";
    if (path === "config") return json(200, { topic: this.topic, topics: this.topics, header: "Hello World Dev!", environment: "dev" });
    if (path === "messages") {
      this.polled = (this.polled ?? 0) + 1;
      if (this.noAnswer) return;
      if (this.noHistory) return json(503, { error: "Kafka is unreachable" }, { "retry-after": "1" });
      return json(200, this.#page(url.searchParams));
    }
    if (path === "events") {
      this.asked = (this.asked ?? 0) + 1;
      if (this.heldBack === "streams") return;
      if (this.refusal) return json(this.refusal.status, this.refusal.body ?? {}, this.refusal.headers);
      response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache", connection: "close" });
      const line = {
        send: (event) => {
          const name = event.type === "message" ? "" : `event: ${event.type}\n`;
          response.write(`id: ${event.cursor ?? ""}\n${name}data: ${JSON.stringify(event)}\n\n`);
        },
        sendRaw: (text, cursor) => response.write(`id: ${cursor}\ndata: ${text}\n\n`),
        end: () => response.end(),
        destroy: () => response.destroy(),
      };
      response.on("close", () => this.#forget(line));
      return this.#stream(line, url.searchParams);
    }
    if (path === "blank") {
      response.writeHead(200, { "content-type": "text/html" });
      return response.end("<!doctype html><title>blank</title>");
    }
    const text = await readFile(new URL(path, FILES)).catch(() => null);
    if (!text) return json(404, { error: "not here" });
    const kind = `${KINDS[path.split(".").pop()]}; charset=utf-8`;
    response.writeHead(200, { "content-type": kind, "content-security-policy": POLICY, "cache-control": "no-cache" });
    response.end(text);
  }

  #date() {
    return new Date(Date.now() + this.clock).toUTCString();
  }

  #forget(line) {
    for (const stream of this.streams) if (stream.line === line) this.streams.delete(stream);
  }

  #stream(line, query) {
    this.opened += 1;
    const [after, from, last] = ["after", "from", "last"].map((name) => query.get(name));
    const topic = query.get("topic") ?? this.topic;
    if (!this.topics.includes(topic) || last > 500) {
      const event = { type: "bye", cursor: null, reason: "invalid", detail: "this cannot be served" };
      line.send(event);
      return line.end(event);
    }
    const stream = { line, vector: this.#ends() };
    let gap = null;
    if (after) {
      const cursor = this.vector(after);
      stream.vector = cursor ?? this.#ends();
      if (!cursor) gap = { reason: "unknown-cursor", ranges: [] };
    } else if (from === "earliest") stream.vector = this.#begins();
    else if (from) stream.vector = this.partitions.map(({ begin, records }) => begin + (i => (i < 0 ? records.length : i))(records.findIndex((r) => r.timestamp >= Date.parse(from))));
    else if (last) stream.vector = this.#back(this.#ends(), Number(last)).vector;
    if (this.away) line.send({ type: "status", source: "down", since: this.away, reason: this.reason });
    line.send({ type: "start", cursor: after && !gap ? after : this.#cursor(stream.vector), topic });
    if (gap) line.send({ type: "gap", cursor: this.#cursor(stream.vector), ...gap });
    this.streams.add(stream);
    this.#pump(stream);
  }

  #status(stream, source) {
    stream.line.send({ type: "status", cursor: this.#cursor(stream.vector), source, since: this.away, reason: this.reason });
  }

  #pump(stream) {
    const send = (event) => stream.line.send({ ...event, cursor: this.#cursor(stream.vector) });
    for (const [partition, { begin, records }] of this.partitions.entries()) {
      const next = stream.vector[partition];
      if (next > begin + records.length || stream.made?.[partition] > this.partitions[partition].made) {
        stream.vector[partition] = begin;
        send({ type: "gap", reason: "recreated", ranges: [{ partition, from: next, to: null }] });
      } else if (next < begin) {
        stream.vector[partition] = begin;
        send({ type: "gap", reason: "retention", ranges: [{ partition, from: next, to: begin }] });
      }
    }
    for (let sent = 0; ; sent += 1) {
      const open = [...this.partitions.keys()].filter((p) => this.#record(p, stream.vector[p]));
      if (open.length === 0) return;
      if (sent === this.burst) return void setTimeout(() => this.streams.has(stream) && this.#pump(stream), 100);
      const partition = open[Math.floor(Math.random() * open.length)];
      const record = this.#record(partition, stream.vector[partition]);
      stream.vector[partition] += 1;
      send(event(record));
    }
  }

  #page(query) {
    const limit = Number(query.get("limit") ?? 50);
    const after = query.get("after");
    const start = after ? this.vector(after) : query.get("from") ? this.#begins() : null;
    const { vector, records } = start ? this.#forth(start, limit) : this.#back(this.vector(query.get("before")) ?? this.#ends(), limit);
    const before = [...vector];
    const events = records.map((record) => {
      vector[record.partition] = record.offset + 1;
      return { ...event(record), cursor: this.#cursor(vector) };
    });
    return {
      messages: events.filter(({ type }) => type === "message"),
      gaps: events.filter(({ type }) => type === "gap").map(({ type, ...gap }) => gap),
      before: before.every((next, p) => next <= this.partitions[p].begin) ? null : this.#cursor(before),
      after: this.#cursor(vector),
    };
  }

  /** The newest `count` records before a position, and the position before them. */
  #back(end, count) {
    const vector = [...end];
    const records = [];
    while (records.length < count) {
      const newest = vector.map((next, p) => this.#record(p, next - 1)).filter(Boolean);
      if (newest.length === 0) break;
      const record = newest.reduce((a, b) => (b.timestamp >= a.timestamp ? b : a));
      vector[record.partition] = record.offset;
      records.unshift(record);
    }
    return { vector, records };
  }

  #forth(start, count) {
    const ends = [...start];
    const records = [];
    while (records.length < count) {
      const oldest = ends.map((next, p) => this.#record(p, next)).filter(Boolean);
      if (oldest.length === 0) break;
      const record = oldest.reduce((a, b) => (b.timestamp < a.timestamp ? b : a));
      ends[record.partition] += 1;
      records.push(record);
    }
    return { vector: [...start], records };
  }

  #record(partition, offset) {
    const { begin, records } = this.partitions[partition];
    return records[offset - begin];
  }

  #begins() {
    return this.partitions.map(({ begin }) => begin);
  }

  #ends() {
    return this.partitions.map(({ begin, records }) => begin + records.length);
  }

  /** The cursor of a position; in version 1, without the topic's id. */
  #cursor(vector, version = 2) {
    const id = version === 2 ? [this.id & 255, this.id >> 8] : [];
    const bytes = [version, crc32(this.topic) & 255, (crc32(this.topic) >> 8) & 255, ...id];
    for (const [partition, next] of vector.entries()) {
      const record = this.#record(partition, next - 1);
      for (let rest = next * 2 + (record ? 1 : 0), more = true; more; rest = Math.floor(rest / 128)) {
        more = rest > 127;
        bytes.push((rest % 128) + (more ? 128 : 0));
      }
      if (record) bytes.push(...fingerprint(record));
    }
    return Buffer.from(bytes).toString("base64url");
  }

  /** What a cursor says: the next offset of each partition; null when it is garbled. */
  vector(cursor) {
    if (!cursor) return null;
    const bytes = Buffer.from(cursor, "base64url");
    if (![1, 2].includes(bytes[0]) || bytes[1] !== (crc32(this.topic) & 255)) return null;
    const vector = [];
    for (let at = bytes[0] === 2 ? 5 : 3; at < bytes.length; ) {
      let value = 0;
      let scale = 1;
      do {
        value += (bytes[at] & 127) * scale;
        scale *= 128;
      } while (bytes[at++] & 128);
      vector.push(Math.floor(value / 2));
      if (value % 2 === 1) at += 2;
    }
    return this.partitions.map((_, p) => vector[p] ?? 0);
  }
}

function fingerprint({ timestamp, data }) {
  const sum = crc32(`${timestamp} ${data}`);
  const folded = (sum >>> 16) ^ (sum & 0xffff);
  return [folded & 255, folded >> 8];
}

function event({ gap, ...record }) {
  if (!gap) return { type: "message", ...record };
  return { type: "gap", reason: gap, ranges: [{ partition: record.partition, from: record.offset, to: record.offset + 1 }] };
}
