"""Reads the counts as the original's API and its clients do, and writes the rows as a line of JSON.

usage: counts.py <url of the API>, with GET and then with POST; or counts.py <file of SQLite>, as the original's API reads it
"""

import json
import sqlite3
import sys
import urllib.request

# No proxy that the environment may name.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def over_http(url):
    for method in ("GET", "POST"):
        data = b"" if method == "POST" else None
        with opener.open(urllib.request.Request(f"{url}/aggregated", data=data, method=method), timeout=10) as response:
            yield json.loads(response.read()), response.status, response.headers["content-type"]


def from_file(path):
    # The original opens the file per request, and waits at most 10 seconds for a lock.
    connection = sqlite3.connect(path, timeout=10)
    try:
        rows = connection.execute("SELECT food, count FROM aggregated").fetchall()
        [(schema,)] = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
        [(journal,)] = connection.execute("PRAGMA journal_mode")
        return [{"count": count, "food": food} for food, count in rows], schema, journal
    finally:
        connection.close()


def main(source):
    if source.startswith("http"):
        answers = [dict(zip(("rows", "status", "type"), answer)) for answer in over_http(source)]
    else:
        answers = [dict(zip(("rows", "schema", "journal"), from_file(source)))]
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
