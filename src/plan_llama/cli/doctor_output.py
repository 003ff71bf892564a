"""What a running server writes: a few fixed questions at temperature 0, each within a time, and whether text comes."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass

from plan_llama.cli.doctor_server import Server
from plan_llama.doctor.evidence import RUNNING, Fact, Line
from plan_llama.doctor.reader import LogReader
from plan_llama.doctor.redact import redacted
from plan_llama.doctor.spoken import fault

_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Question:
    """`share` of the time is for its answer; what one does not use the next ones have."""

    name: str
    text: str
    tokens: int
    share: float


# A short answer comes first: a server that hangs is known by it. Scripts of other alphabets show broken vocabularies
# and templates, and a text of some hundred tokens shows repetition that begins late.
QUESTIONS = (
    Question("short", "What is the capital of France? Answer in one word.", 48, 0.2),
    Question(
        "languages",
        "Translate 'Good morning, how are you today?' into German, Russian, Arabic and Japanese.",
        160,
        0.4,
    ),
    Question("long", "Explain step by step, in about fifteen sentences, how bread is baked.", 384, 1.0),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `kind`: text, a fault of the text, slow (text, and not all in time), silent, failed or refused."""

    kind: str
    said: str


def probed(reader: LogReader, server: Server, timeout_s: float) -> None:
    """All questions, in at most `timeout_s` together. What does not come, or is no text, is a fact for the rules."""
    until = time.monotonic() + timeout_s
    found: dict[str, Line] = {}
    for question in QUESTIONS:
        left = until - time.monotonic()
        if "silent" in found or left <= 0:
            answer = Answer("not asked", "not asked")
        else:
            answer = _asked(reader, server, question, left * question.share)
        line = Line(0, f"probe, {question.name}: {answer.said}", RUNNING)
        reader.observe(f"probe_{question.name}", Fact(answer.kind, line))
        found.setdefault(answer.kind, line)
    faults = [kind for kind in found if kind in ("repetition", "mojibake", "empty", "failed", "refused")]
    if faults:
        reader.observe("output_fault", Fact(faults[0], found[faults[0]]))
    elif "text" in found:
        reader.observe("output_fine", Fact(True, found["text"]))
    for kind in ("slow", "silent", "failed"):
        if kind in found:
            reader.observe(f"output_{kind}", Fact(True, found[kind]))


def _asked(reader: LogReader, server: Server, question: Question, timeout_s: float) -> Answer:
    """Asks one; the answer comes in pieces, so that what came in time is judged where not all did."""
    body = {
        "messages": [{"role": "user", "content": question.text}],
        "temperature": 0,
        "max_tokens": question.tokens,
        "stream": True,
    }
    began = time.monotonic()
    try:
        status, data = server.ask("/v1/chat/completions", body, timeout_s=timeout_s, partial=True)
    except TimeoutError:
        return Answer("silent", f"no answer within {timeout_s:.0f} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Answer("silent", f"the connection ended without an answer ({redacted(reason)})")
    if status != http.client.OK:
        words = redacted(data[:200].decode("utf-8", "replace"))
        if status not in (
            http.client.UNAUTHORIZED,
            http.client.FORBIDDEN,
        ):  # a key of ours is missing, and no more
            reader.feed([words.encode()], RUNNING)  # a template that does not parse is a line that rules know
        failed = status >= http.client.INTERNAL_SERVER_ERROR and status != http.client.SERVICE_UNAVAILABLE
        return Answer("failed" if failed else "refused", f"the server answered {status}: {words}")
    text, whole = _text(data)
    late = not whole and time.monotonic() - began >= timeout_s
    if late and not text:
        return Answer("silent", f"no word within {timeout_s:.0f} s")
    kind = fault(text)
    shown = f"{kind or 'it is text'}: '{redacted(' '.join(text.split())[:_SHOWN])}'"
    if late:
        shown += f" (not finished after {timeout_s:.0f} s)"
    return Answer(kind or ("slow" if late else "text"), shown)


def _text(data: bytes) -> tuple[str, bool]:
    """What was written, thoughts too, and whether that is all. An answer of another shape is empty.

    The pieces are server-sent events, `data: {...}` a line, and `data: [DONE]` at the end.
    """
    lines = data.split(b"\n")
    events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    parts: list[str] = []
    for piece in events or [data]:
        try:
            choice = json.loads(piece)["choices"][0]
            message = choice.get("delta") or choice.get("message")
            parts += [str(message.get(name) or "") for name in ("reasoning_content", "content")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
    return "".join(parts), not events or b"[DONE]" in events
