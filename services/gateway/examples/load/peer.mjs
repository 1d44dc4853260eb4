// A gateway as one would write it with `ws` and `kafkajs`: `node peer.mjs each|batched BROKER TOPIC`, in a folder that has the packages.

import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const { Kafka, Partitioners, logLevel } = require("kafkajs");
const { WebSocketServer } = require("ws");

const [kind, broker, topic] = process.argv.slice(2);
const TYPES = new Set(["SESSION_START", "EVENT", "SESSION_END"]);

/// How long a frame waits for others of its request, and the bytes after which it no longer does.
const LINGER = 5;
const REQUEST_BYTES = 512 << 10;

const kafka = new Kafka({ clientId: "peer", brokers: [broker], logLevel: logLevel.WARN });
// An idempotent producer of kafkajs has one request in flight at a time. With a request per frame, it could send no more than about
// a thousand frames a second, so that the order after a failed request is given up instead.
const producer = kafka.producer({
  idempotent: kind === "batched",
  allowAutoTopicCreation: false,
  createPartitioner: Partitioners.DefaultPartitioner,
});

// Each sends a record and returns where it is.
const send = { each, batched }[kind];

async function each(key, value) {
  const [{ partition, baseOffset }] = await producer.send({ topic, acks: -1, messages: [{ key, value }] });
  return { partition, offset: Number(baseOffset) };
}

let queue = [];
let flushing = false;

function batched(key, value, partition) {
  return new Promise((resolve, reject) => {
    queue.push({ message: { key, value, partition }, resolve, reject });
    if (flushing) return;
    flushing = true;
    setTimeout(flush, LINGER);
  });
}

async function flush() {
  while (queue.length > 0) {
    let count = 0;
    for (let bytes = 0; count < queue.length && bytes < REQUEST_BYTES; count += 1) bytes += queue[count].message.value.length;
    const batch = queue.slice(0, count);
    queue = queue.slice(count);
    try {
      const results = await producer.send({ topic, acks: -1, messages: batch.map(({ message }) => message) });
      const next = new Map(results.map(({ partition, baseOffset }) => [partition, Number(baseOffset)]));
      for (const { message, resolve } of batch) {
        const offset = next.get(message.partition);
        next.set(message.partition, offset + 1);
        resolve({ partition: message.partition, offset });
      }
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  }
  flushing = false;
}

/// The rule that a frame breaks, if any.
function broken(text) {
  let events;
  try {
    events = JSON.parse(text);
  } catch {
    return "a frame must be JSON";
  }
  if (!Array.isArray(events) || events.length === 0) return "a frame must be a JSON array of events";
  for (const event of events) {
    if (typeof event !== "object" || event === null) return "an event must be a JSON object";
    if (!Number.isFinite(event.timestamp)) return "timestamp must be a finite number";
    if (!TYPES.has(event.type)) return "type must be SESSION_START, SESSION_END or EVENT";
    if (event.name !== undefined && typeof event.name !== "string") return "name must be a string";
  }
  return undefined;
}

const admin = kafka.admin();
await admin.connect();
const { topics } = await admin.fetchTopicMetadata({ topics: [topic] });
await admin.disconnect();
const partitioner = Partitioners.DefaultPartitioner();
const partitionMetadata = topics[0].partitions;
await producer.connect();

const server = createServer((_, response) => response.writeHead(404).end());
const sockets = new WebSocketServer({ server, path: "/websocket", perMessageDeflate: false, maxPayload: 256 << 10 });
sockets.on("connection", (socket, request) => {
  const query = new URL(request.url, "http://localhost").searchParams;
  const session = query.get("session_id");
  if (!session) return socket.close(1008, "query is missing session_id");
  const ack = query.get("ack") === "1";
  const key = JSON.stringify(session);
  const partition = partitioner({ topic, partitionMetadata, message: { key } });
  socket.on("error", () => socket.terminate());
  socket.on("message", async (data, binary) => {
    const error = binary ? "a frame must be text" : broken(data.toString());
    if (error) return socket.send(JSON.stringify({ type: "error", error }));
    try {
      const { partition: of, offset } = await send(key, data, partition);
      if (ack) socket.send(JSON.stringify({ type: "ack", partition: of, offset, cursor: `${of}-${offset}` }));
    } catch (error) {
      console.error(error.message);
      socket.close(1013, "kafka does not accept frames; try again later");
    }
  });
});

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  console.log(JSON.stringify({ public: `127.0.0.1:${server.address().port}` }));
});
