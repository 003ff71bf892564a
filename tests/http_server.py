"""An HTTP server on 127.0.0.1 for tests: files with or without ranges, and every way to answer wrongly."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(slots=True)
class Asked:
    """One request as it came in."""

    path: str
    range: str | None
    authorization: str | None
    if_none_match: str | None


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(slots=True)
class Site:
    """What a server answers, by path; `answers` go first, then `files`. `asked` has every request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # of files that go on with zeros behind what is held of them
    ranges: bool = True
    etag: str = ""
    asked: list[Asked] = field(default_factory=list)

    def hub(
        self,
        repo: str,
        files: dict[str, bytes],
        sizes: dict[str, int] | None = None,
        *,
        revision: str = "main",
    ) -> None:
        """Lists and holds a revision of a repository as huggingface.co does; slashes in it come as %2F."""
        rows: list[dict[str, Any]] = [{"type": "directory", "path": "sub", "oid": "0" * 40, "size": 0}]
        for path, data in files.items():
            size = (
                (sizes or {}).get(path) or self.sizes.get(f"/{repo}/resolve/{revision}/{path}") or len(data)
            )
            oid = f"{hash((path, data)) & (1 << 256) - 1:064x}"
            rows.append(
                {
                    "type": "file",
                    "path": path,
                    "oid": "1" * 40,
                    "size": 135,
                    "lfs": {"oid": oid, "size": size},
                }
            )
            self.files[f"/{repo}/resolve/{revision}/{path}"] = data
        self.files[f"/api/models/{repo}/tree/{revision}"] = json.dumps(rows).encode()


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> Answer:
    """An answer with that status."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def partial(content_range: str, body: bytes, *, length: int | None = None, encoding: str = "") -> Answer:
    """A 206 that may say what is not so."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", content_range)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def dripping(parts: Sequence[bytes], pause_s: float, *, head: bytes = b"") -> Answer:
    """Raw bytes with a pause before each."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        for part in parts:
            time.sleep(pause_s)
            try:
                handler.wfile.write(part)
                handler.wfile.flush()
            except OSError:
                return  # the client has given up, as it should

    return answer


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        pass

    def do_GET(self) -> None:
        site: Site = self.server.site  # type: ignore[attr-defined]  # set in `serving`
        headers = self.headers
        site.asked.append(
            Asked(self.path, headers["Range"], headers["Authorization"], headers["If-None-Match"])
        )
        path = self.path.partition("?")[0]
        answer = site.answers.get(self.path) or site.answers.get(path)
        if answer is not None:
            answer(self)
            return
        data = site.files.get(path)
        if data is None:
            status(404, {"X-Error-Code": "RepoNotFound"})(self)
            return
        if site.etag and headers["If-None-Match"] == site.etag:
            self.send_response(304)
            self.end_headers()
            return
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", headers["Range"] or "")
        if wanted and site.ranges:
            total = site.sizes.get(path, len(data))
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, total)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            data = data[start:end].ljust(end - start, b"\0")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            return  # the client has read what it wanted


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes early is no news."""


@contextmanager
def serving() -> Iterator[Site]:
    """A running server with its site."""
    server = _Server(("127.0.0.1", 0), _Handler)
    site = Site(url=f"http://127.0.0.1:{server.server_address[1]}")
    server.site = site  # type: ignore[attr-defined]  # for the handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
