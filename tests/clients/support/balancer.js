import net from "node:net";

import { freePort } from "./ports.js";

/**
 * A plain TCP balancer: each connection goes to the first replica that accepts it, and nothing is known of what goes over it.
 */
export async function startBalancer(t, replicas) {
  const open = new Set();
  const server = net.createServer({ allowHalfOpen: true }, (client) => {
    keep(client);
    forward(client, replicas.map(({ port }) => port));
  });

  function keep(socket) {
    open.add(socket);
    socket.on("close", () => open.delete(socket));
    socket.on("error", () => socket.destroy());
  }

  function forward(client, [port, ...others]) {
    const replica = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    let accepted = false;
    keep(replica);
    replica.on("connect", () => {
      accepted = true;
      client.pipe(replica);
      replica.pipe(client);
      client.on("close", () => replica.destroy());
    });
    replica.on("error", () => (accepted || others.length === 0 ? client.destroy() : forward(client, others)));
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
