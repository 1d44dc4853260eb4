/** A client of rooms, as the original's web page is one. */
import { io } from "socket.io-client";

/** The first result of the one-minute windows in each of these rooms, `[{id, count}]`; `url` is the consumer's. */
export async function firstResults(url, rooms, milliseconds = 20_000) {
  const socket = io(url, { transports: ["websocket"] });
  const results = [];
  try {
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no result within ${milliseconds} ms: ${JSON.stringify(results)}`)), milliseconds);
      socket.on("live_aggregations_1", (result) => {
        if (results.push(result) === rooms.length) resolve(results);
        if (results.length === rooms.length) clearTimeout(timer);
      });
      socket.emit("consume_1_min_aggregations", {});
      socket.emit("register_room", { rooms: [] });
      socket.emit("register_room", { rooms });
    });
  } finally {
    socket.close();
  }
}
