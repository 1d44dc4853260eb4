// Certificates, and clients of HTTP/2.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import http2 from "node:http2";
import os from "node:os";
import path from "node:path";

import { createParser } from "eventsource-parser";

import { until } from "./wait.js";

/** A folder that the test removes. */
export function folderOf(t) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "herald-tls-"));
  t.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** Writes a certificate of this machine and its key as `tls.crt` and `tls.key` into a folder. `options` are those of the services. */
export function newCertificate(folder) {
  const [cert, key] = [path.join(folder, "tls.crt"), path.join(folder, "tls.key")];
  const kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  const names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  execFileSync("openssl", ["req", ...kind, ...names, "-out", cert, "-keyout", key], { stdio: "ignore" });
  return { cert, key, ca: readFileSync(cert), options: ["--tls-cert", cert, "--tls-key", key] };
}

/** A connection of HTTP/2 with room for what it does not read, as browsers have it. It ends with the test. */
export async function openSession(t, url, ca) {
  const session = http2.connect(url, { ca });
  t.after(() => session.destroy());
  session.on("error", () => {});
  await new Promise((resolve, reject) => session.once("connect", resolve).once("error", reject));
  session.setLocalWindowSize(16 << 20);
  return session;
}

/** The whole answer to a request over such a connection. */
export function fetchOver(session, path, { headers = {}, body } = {}) {
  const stream = session.request({ ":path": path, ...headers });
  const answer = { text: "" };
  stream.on("response", (headers) => Object.assign(answer, { status: headers[":status"], headers }));
  stream.setEncoding("utf8").on("data", (text) => (answer.text += text));
  stream.end(body);
  return new Promise((resolve, reject) => stream.on("end", () => resolve(answer)).on("error", reject));
}

/** A stream of server-sent events over such a connection. It can be paused, and ends with the test. */
export async function openEventsOver(t, session, path, headers = {}) {
  const request = session.request({ ":path": path, ...headers });
  const stream = { request, events: [], ended: false };
  t.after(() => request.destroy());
  const parser = createParser({ onEvent: (event) => stream.events.push(event) });
  request.setEncoding("utf8").on("data", (text) => parser.feed(text));
  request.on("response", (headers) => (stream.headers = headers));
  request.on("end", () => (stream.ended = true));
  request.on("error", () => {});
  request.on("close", () => (stream.reset = request.rstCode));
  stream.texts = () => stream.events.filter(({ event }) => event === undefined).map(({ data }) => data);
  stream.named = (name) => stream.events.filter(({ event }) => event === name).map(({ data }) => JSON.parse(data));
  await until(`a start on ${path}`, () => stream.named("start").length + stream.named("bye").length > 0);
  return stream;
}
