import net from "node:net";

/** Files of tests run at the same time, each as a process: it tries its own ports first, one after the other. */
const OF_A_PROCESS = 100;
let next = (process.pid % 100) * OF_A_PROCESS;

/** A free port that no client gets by chance while the server that has it is away: they are given ports from 32768 up. */
export async function freePort() {
  for (;;) {
    const port = 20_000 + (next++ % 10_000);
    if (await isFree(port)) {
      return port;
    }
  }
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}
