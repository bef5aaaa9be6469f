"""A remote calendar over HTTP, for tests and the demo: it books, and fails, hangs or dies as it is told.

    POST /bookings {"key": ..., "request": {...}}   201 {"uid": ...}; the same key again gives the same uid
    GET  /bookings?key=...                          200 {"uid": ... or null}
    GET  /bookings                                  200 {key: uid, ...}
    POST /mode {"mode": "ok" | "fail" | "hang" | "die"}

`die` books and then closes the connection without an answer: the caller cannot know. Run as a program it prints its
port; it keeps its bookings for as long as it runs.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HANG_SECONDS = 30.0


class Calendar(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.mode = "ok"
        self.bookings: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def book(self, key: str) -> str:
        with self.lock:
            return self.bookings.setdefault(key, f"uid_{len(self.bookings) + 1}")


class Handler(BaseHTTPRequestHandler):
    server: Calendar

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/mode":
            self.server.mode = body["mode"]
            self._answer(200, {})
            return
        match self.server.mode:
            case "fail":
                self._answer(503, {"error": "the calendar is down"})
            case "hang":
                time.sleep(HANG_SECONDS)
            case "die":
                self.server.book(body["key"])
                self.connection.close()
            case _:
                self._answer(201, {"uid": self.server.book(body["key"])})

    def do_GET(self) -> None:
        key = parse_qs(urlsplit(self.path).query).get("key")
        with self.server.lock:
            self._answer(200, {"uid": self.server.bookings.get(key[0])} if key else dict(self.server.bookings))

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    calendar = Calendar()
    print(calendar.server_address[1], flush=True)
    calendar.serve_forever()
