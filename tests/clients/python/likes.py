"""Likes the videos of a gateway with urllib, and writes what is answered as a line of JSON.

usage: likes.py <base of the API> [identifier…]; without identifiers, each of the videos that the API lists
"""

import json
import sys
import urllib.parse
import urllib.request

# No proxy that the environment may name.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(method, url):
    with opener.open(urllib.request.Request(url, method=method), timeout=20) as response:
        return response.status, json.loads(response.read())


def main(base, *identifiers):
    if not identifiers:
        status, videos = ask("GET", f"{base}/videos/metadata")
        assert status == 200, status
        identifiers = [video["unique_identifier"] for video in videos]
    liked = [ask("POST", f"{base}/videos/{urllib.parse.quote(video, safe='')}/likes") for video in identifiers]
    print(json.dumps(liked))


if __name__ == "__main__":
    main(*sys.argv[1:])
