import net from "node:net";

import { freePort } from "./ports.js";

/**
 * A plain TCP balancer: each connection goes to the first replica that accepts it, and knows nothing of what goes over it.
 */
export async function startBalancer(t, replicas) {
  const open = new Set();
  const server = net.createServer({ allowHalfOpen: true }, (client) => forward(client, replicas.map(({ port }) => port)));
  function forward(client, [port, ...others]) {
    const replica = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    replica.on("connect", () => {
      client.pipe(replica);
      replica.pipe(client);
    });
    replica.on("error", () => (replica.bytesRead === 0 && replica.connecting !== false && others.length > 0 ? forward(client, others) : client.destroy()));
    for (const socket of [client, replica]) {
      open.add(socket);
      socket.on("close", () => open.delete(socket));
    }
    client.on("error", () => replica.destroy());
    client.on("close", () => replica.destroy());
  }
  const port = await freePort();
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  t.after(() => {
    server.close();
    for (const socket of open) {
      socket.destroy();
    }
  });
  return { port, url: `http://127.0.0.1:${port}`, ws: `ws://127.0.0.1:${port}/ws` };
}
