/** Clients of an environment that demands TLS and tokens. */
import { createServer } from "node:http";
import https from "node:https";

/** The status of a GET over TLS, and its text. `ca` is the certificate that is trusted. */
export function get(url, { ca, token } = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  return new Promise((resolve, reject) => {
    const request = https.get(url, { ca, headers }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (data) => (text += data));
      response.on("end", () => resolve({ status: response.statusCode, text }));
    });
    request.on("error", reject);
  });
}

/**
 * The address of a server on this machine, for clients that know neither TLS nor tokens: it verifies the certificate of `url`, and
 * adds the token to each request. It ends with the test.
 */
export async function withToken(t, url, { ca, token }) {
  const { hostname: host, port, host: own } = new URL(url);
  const onward = ({ method, url: path, headers }) => {
    const added = { ...headers, host: own, authorization: `Bearer ${token}` };
    return https.request({ host, port, ca, method, path, headers: added, agent: false });
  };
  const server = createServer((request, response) => {
    const sent = onward(request).on("error", () => response.destroy());
    sent.on("response", (answer) => answer.pipe(response.writeHead(answer.statusCode, answer.headers)));
    request.pipe(sent);
  });
  server.on("upgrade", (request, socket) => {
    const sent = onward(request).on("error", () => socket.destroy());
    sent.on("response", () => socket.destroy());
    sent.on("upgrade", ({ rawHeaders }, other, first) => {
      const lines = rawHeaders.flatMap((name, index) => (index % 2 ? [] : [`${name}: ${rawHeaders[index + 1]}`]));
      socket.write(`${["HTTP/1.1 101 Switching Protocols", ...lines].join("\r\n")}\r\n\r\n`);
      socket.write(first);
      for (const [one, another] of [[socket, other], [other, socket]]) one.pipe(another).on("error", () => one.destroy());
    });
    sent.end();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => (server.close(), server.closeAllConnections()));
  return `http://127.0.0.1:${server.address().port}`;
}
