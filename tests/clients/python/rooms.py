"""Connects to a consumer as the original's Python client does: it registers its rooms first, then asks for the three windows. It
writes each result as a line of JSON, until stdin ends.

usage: rooms.py <url> <room>[,<room>] [<transport>[,<transport>]]
"""

import json
import sys
import threading

import socketio

WINDOWS = [1, 5, 10]


def main(url, rooms, transports="polling,websocket"):
    client = socketio.Client()
    # The library calls each handler in a thread of its own.
    lock = threading.Lock()

    def tell(event, payload=None):
        with lock:
            print(json.dumps({"event": event, "payload": payload}), flush=True)

    @client.event
    def connect():
        client.emit("register_room", {"rooms": rooms.split(",")})
        for window in WINDOWS:
            client.emit(f"consume_{window}_min_aggregations", {})
        tell("connect")

    for window in WINDOWS:
        event = f"live_aggregations_{window}"
        client.on(event, lambda payload, event=event: tell(event, payload))
    client.on("error", lambda payload: tell("error", payload))
    client.connect(url, transports=transports.split(","), wait_timeout=20)
    sys.stdin.read()
    client.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])
