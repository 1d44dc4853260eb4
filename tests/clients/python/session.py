"""Sends frames to a gateway with websockets, and writes each answer and how the connection ends as a line of JSON.

usage: session.py <url>, with frames on stdin, one JSON value per line: a string is sent as it is, {"text": …} and {"binary": …} are
bytes in base64 and the kind of frame
"""

import base64
import contextlib
import json
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def tell(**event):
    print(json.dumps(event), flush=True)


def send(connection, frame):
    if isinstance(frame, str):
        connection.send(frame)
    else:
        [(kind, content)] = frame.items()
        connection.send(base64.b64decode(content), text=kind == "text")


def main(url):
    try:
        # No proxy that the environment may name.
        with connect(url, proxy=None) as connection:
            with contextlib.suppress(ConnectionClosed):
                for line in sys.stdin:
                    send(connection, json.loads(line))
            # What came before the connection was closed can still be received.
            with contextlib.suppress(ConnectionClosed):
                while True:
                    tell(received=json.loads(connection.recv()))
            tell(closed=connection.close_code, reason=connection.close_reason)
    except InvalidStatus as error:
        tell(rejected=error.response.status_code, text=error.response.body.decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
