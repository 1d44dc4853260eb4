"""Connects to a consumer with python-socketio and writes each event as a line of JSON, until stdin ends.

usage: client.py <url> <transport>[,<transport>] [<auth as JSON>]
"""

import json
import sys
import threading

import engineio
import socketio

# By default the library gives up when a polling answer has more than 16 packets; its documentation tells to raise that.
engineio.payload.Payload.max_decode_packets = 500

EVENTS = ["env", "custom_header", "start", "message", "gap", "status", "bye", "connect_error"]


def main(url, transports, auth="null"):
    client = socketio.Client()
    # The library calls each handler in a thread of its own.
    lock = threading.Lock()

    def tell(event, payload=None):
        with lock:
            print(json.dumps({"event": event, "payload": payload, "transport": client.transport()}), flush=True)

    for event in EVENTS:
        client.on(event, lambda payload, event=event: tell(event, payload))
    try:
        client.connect(url, transports=transports.split(","), auth=json.loads(auth), wait_timeout=20)
    except socketio.exceptions.ConnectionError:
        return
    sys.stdin.read()
    client.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])
