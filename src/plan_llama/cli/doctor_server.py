"""A server that runs: what it says of itself at /health, /props, /slots and /metrics, and a probe of what it writes.

Only that URL is asked, no redirect is followed, and no proxy is used. The routes are llama-server's
(tools/server/server.cpp, b11434).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from plan_llama.doctor.evidence import RUNNING, Fact, Line, Value
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import redacted
from plan_llama.doctor.spoken import fault
from plan_llama.errors import InputError

_MOST_BYTES = 4 << 20
_TIMEOUT_S = 10.0
_KEY = "LLAMA_API_KEY"  # the name that llama-server itself reads its keys from (common/arg.cpp)
_PROMPT = "Describe in three sentences how bread is baked."
_TOKENS = 96
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

    def ask(self, path: str, body: object = None, *, timeout_s: float = _TIMEOUT_S) -> tuple[int, bytes]:
        """Status and answer. Raises OSError or HTTPException where it cannot be asked, or is too slow."""
        made = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = made(self._host, self._port, timeout=timeout_s)
        headers = {"Accept": "*/*"} | ({"Content-Type": "application/json"} if body is not None else {})
        if key := os.environ.get(_KEY):
            headers["Authorization"] = f"Bearer {key.partition(',')[0]}"
        until = time.monotonic() + timeout_s
        try:
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", self._base + path, data, headers)
            answer = connection.getresponse()
            parts = bytearray()
            while len(parts) < _MOST_BYTES and (chunk := answer.read1(1 << 16)):
                parts += chunk
                if time.monotonic() > until:
                    raise TimeoutError("too slow")
            return answer.status, bytes(parts)
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """A JSON answer; None where the server has none there."""
        try:
            status, data = self.ask(path)
            self.refused |= status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN)
            return json.loads(data) if status == http.client.OK else None
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return None


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


def probed(reader: LogReader, server: Server, timeout_s: float) -> None:
    """A fixed prompt at temperature 0, and whether what comes back is text. Raises InputError where none comes."""
    body = {
        "messages": [{"role": "user", "content": _PROMPT}],
        "temperature": 0,
        "max_tokens": _TOKENS,
        "stream": False,
    }
    try:
        status, data = server.ask("/v1/chat/completions", body, timeout_s=timeout_s)
        answer = json.loads(data) if status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "--timeout SECONDS gives it longer"
        raise InputError(f"--probe-output: no answer ({reason})", hint=hint) from error
    if answer is None:
        words = redacted(data[:200].decode("utf-8", "replace"))
        reader.feed([words.encode()], RUNNING)  # a template that does not parse is a line that rules know
        line = Line(0, f"probe: the server answered {status}: {words}", RUNNING)
        reader.observe("output_fault", Fact("refused", line))
        return
    text = _text(answer)
    found = fault(text)
    shown = " ".join(text.split())[:120]
    line = Line(0, f"probe: {found or 'it is text'}: '{redacted(shown)}'", RUNNING)
    reader.observe("output_fault" if found else "output_fine", Fact(found or True, line))


def _text(answer: object) -> str:
    """What was written, thoughts too. An answer of another shape is empty."""
    try:
        message = answer["choices"][0]["message"]  # type: ignore[index]  # whatever shape it has
        return f"{message.get('reasoning_content') or ''}{message.get('content') or ''}"
    except (LookupError, TypeError, AttributeError):
        return ""


def _float(word: str | None) -> float | None:
    try:
        return None if word is None else float(word)
    except ValueError:
        return None
