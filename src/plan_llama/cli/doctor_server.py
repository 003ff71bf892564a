"""A server that runs: what it says of itself at /health, /props, /slots and /metrics.

Only that URL is asked, no redirect is followed, and no proxy is used. The routes are llama-server's
(tools/server/server.cpp, b11434).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from plan_llama.doctor.evidence import RUNNING, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import redacted
from plan_llama.errors import InputError

_MOST_BYTES = 4 << 20
_TIMEOUT_S = 10.0
_KEY = "LLAMA_API_KEY"  # the name that llama-server itself reads its keys from (common/arg.cpp)
_FTYPE = re.compile(r"\b(?:I?Q\d\w*|F16|F32|BF16|MXFP4\w*)")


class Server:
    """One origin. Every answer is read whole within a time and a size."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host, self._port = "", None
        if parts.scheme not in ("http", "https") or not self._host or "@" in parts.netloc:
            raise InputError(f"--url {redacted(url)}: not a usable URL", hint="such as http://127.0.0.1:8080")
        self.refused = False  # it wanted a key
        self._secure = parts.scheme == "https"
        self._base = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self._base}"

    @property
    def port_here(self) -> int | None:
        """Its port where its address is this machine's own."""
        own = self._host == "localhost" or self._host == "::1" or self._host.startswith("127.")
        return (self._port or (443 if self._secure else 80)) if own else None

    def ask(
        self, path: str, body: object = None, *, timeout_s: float = _TIMEOUT_S, partial: bool = False
    ) -> tuple[int, bytes]:
        """Status and answer; `partial`: what has come when the time is over.

        Raises OSError or HTTPException where it cannot be asked, TimeoutError where it is too slow.
        """
        made = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = made(self._host, self._port, timeout=timeout_s)
        headers = {"Accept": "*/*"} | ({"Content-Type": "application/json"} if body is not None else {})
        if key := os.environ.get(_KEY):
            headers["Authorization"] = f"Bearer {key.partition(',')[0]}"
        until = time.monotonic() + timeout_s
        status, parts = 0, bytearray()
        over = threading.Timer(
            timeout_s, _hang_up, (connection,)
        )  # each read has the timeout, not all of them
        over.daemon = True
        try:
            data = None if body is None else json.dumps(body)
            over.start()
            connection.request("GET" if body is None else "POST", self._base + path, data, headers)
            answer = connection.getresponse()
            status = answer.status
            while len(parts) < _MOST_BYTES and (chunk := answer.read1(1 << 16)):
                parts += chunk
            if time.monotonic() >= until and not partial:
                raise TimeoutError("too slow")
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() < until:
                raise
            if not (partial and status):
                raise TimeoutError("too slow") from error
        finally:
            over.cancel()
            connection.close()
        return status, bytes(parts)

    def json(self, path: str) -> Any:
        """A JSON answer; None where the server has none there."""
        try:
            status, data = self.ask(path)
            self.refused |= status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN)
            return json.loads(data) if status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return None


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not connected yet, or no longer
        connection.sock.shutdown(socket.SHUT_RDWR)


def asked(reader: LogReader, server: Server) -> None:
    """What it says of itself, as facts. Raises InputError where nothing answers."""
    try:
        status, _ = server.ask("/health")
    except (OSError, http.client.HTTPException, ValueError) as error:  # a ValueError is a name that is none
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "is it started, and is this its address and port?"
        raise InputError(f"--url {redacted(server.url)}: cannot be asked ({reason})", hint=hint) from error
    reader.feed([], RUNNING)
    words = {200: "serves", 503: "is loading its model"}.get(status, f"answers {status}")
    health = Line(0, f"/health: it {words}", RUNNING)
    reader.observe("health", Fact(status, health))
    if status == http.client.OK:
        reader.know("served", Fact(True, health))
    for name, value, text in _facts(server):
        line = Line(0, redacted(text), RUNNING)
        reader.know(name, Fact(value, line))
        reader.observe(f"server_{name}", Fact(value, line))
    if server.refused:
        line = Line(0, f"it tells nothing of itself without a key: set {_KEY}", RUNNING)
        reader.observe("key_wanted", Fact(True, line))


def _facts(server: Server) -> Iterator[tuple[str, Value, str]]:
    props = server.json("/props")
    if isinstance(props, dict):
        yield "engine", "llama.cpp", "/props: a llama-server"
        if (build := re.match(r"b(\d+)", str(props.get("build_info", "")))) is not None:
            yield "build", int(build[1]), f"/props: build b{build[1]}"
        if isinstance(slots := props.get("total_slots"), int):
            yield "slots", slots, f"/props: {slots} slots"
        settings = props.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, dict) else None
        if isinstance(context, int):
            yield "slot_context", context, f"/props: {context} tokens of context per slot"
        if isinstance(path := props.get("model_path"), str) and path:
            yield "model_path", path, f"/props: model {path}"
        if found := _FTYPE.search(str(props.get("model_ftype", ""))):
            yield "file_type", found[0], f"/props: quant {found[0]}"
    slots = server.json("/slots")
    if isinstance(slots, list):
        busy = sum(isinstance(item, dict) and item.get("is_processing") is True for item in slots)
        yield "busy_slots", busy, f"/slots: {busy} of {len(slots)} at work"
    try:
        status, data = server.ask("/metrics")
    except (OSError, http.client.HTTPException):
        return
    if status == http.client.OK:
        values = dict(re.findall(r"(?m)^llamacpp:(\w+) ([\d.eE+-]+)$", data.decode("utf-8", "replace")))
        for name, metric, unit in (
            ("decode_tokens", "tokens_predicted_total", "tokens written"),
            ("decode_tok_s", "predicted_tokens_seconds", "tokens written per second"),
            ("prompt_tokens", "prompt_tokens_total", "tokens of prompts read"),
            ("prompt_tok_s", "prompt_tokens_seconds", "tokens of prompts read per second"),
        ):
            number = _float(values.get(metric))
            if number:
                yield name, number, f"/metrics: {number:g} {unit}"


def _float(word: str | None) -> float | None:
    try:
        return None if word is None else float(word)
    except ValueError:
        return None
