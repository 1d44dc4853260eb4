// Servers as one would write them with node alone: `node peers.mjs sse|ws|socketio`, in a folder that has the packages.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createServer as createTcpServer } from "node:net";

const require = createRequire(`${process.cwd()}/`);
const server = createServer();
const deliver = { sse, ws, socketio }[process.argv[2]]();

function sse() {
  const open = new Set();
  server.on("request", (request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    response.write("event: start\ndata: {}\n\n");
    open.add(response);
    response.on("close", () => open.delete(response));
  });
  return (id, data) => {
    const event = `id: ${id}\ndata: ${data}\n\n`;
    for (const response of open) response.write(event);
  };
}

function ws() {
  const { WebSocketServer } = require("ws");
  const sockets = new WebSocketServer({ server, perMessageDeflate: false });
  sockets.on("connection", (socket) => socket.send('{"type":"start"}'));
  return (id, data) => {
    const text = JSON.stringify(message(id, data));
    for (const socket of sockets.clients) socket.send(text);
  };
}

function socketio() {
  const { Server } = require("socket.io");
  const io = new Server(server);
  io.on("connection", (socket) => socket.emit("start", {}));
  return (id, data) => io.emit("message", message(id, data));
}

function message(cursor, data) {
  return { type: "message", cursor, partition: 0, offset: 0, timestamp: Date.now(), key: null, headers: {}, data };
}

// Blocks of events, each behind its length.
const control = createTcpServer((socket) => {
  let rest = Buffer.alloc(0);
  socket.on("data", (bytes) => {
    rest = Buffer.concat([rest, bytes]);
    while (rest.length >= 4 && rest.length >= 4 + rest.readUInt32BE()) {
      const end = 4 + rest.readUInt32BE();
      for (const event of rest.toString("utf8", 4, end).split("\n\n").slice(0, -1)) {
        const [, id, data] = /^id: (.*)\ndata: (.*)$/.exec(event);
        deliver(id, data);
      }
      rest = rest.subarray(end);
    }
  });
});

server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  control.listen(0, "127.0.0.1", () => {
    const address = (of) => `127.0.0.1:${of.address().port}`;
    console.log(JSON.stringify({ public: address(server), control: address(control) }));
  });
});
