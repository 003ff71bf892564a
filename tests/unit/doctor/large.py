"""A large log of a server that serves for weeks, from real lines: requests, restarts, and what else a journal holds.

The requests and starts are those of tests/data/logs/real; every number in them is another one each time. A tenth is
noise whose words never repeat: bodies of requests, identifiers, another program's lines.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.doctor.logs import LOGS

_START = "healthy-no-gpu-four-slots.log"
_FAILED = "context-too-large.log"
_REQUEST = re.compile(r"(?s)\n([^\n]*conv_id.*?all slots are idle\n)")
_NUMBER = re.compile(r"\d{2,}")  # one digit may be a flag
_VARIANTS = 64
_EVERY_BYTES = 20_000_000  # a restart
_WORDS = 4000


def chunks(size_bytes: int, *, seed: int = 7) -> Iterator[bytes]:
    """About `size_bytes` of log, and at its end a start that fails for want of memory."""
    dice = random.Random(seed)  # noqa: S311  the same log each time
    whole = (LOGS / "real" / _START).read_text(encoding="utf-8")
    found = _REQUEST.search(whole)
    assert found is not None
    requests = [_journal(_varied(found[1], dice), dice) for _ in range(_VARIANTS)]
    begin = _journal(whole[: found.start(1)], dice)
    made = next_start = 0
    while made < size_bytes:
        if made >= next_start:
            next_start += _EVERY_BYTES
            yield begin
            made += len(begin)
        part = b"".join((*dice.choices(requests, k=8), *(_noise(dice) for _ in range(26))))
        yield part
        made += len(part)
    yield (LOGS / "real" / _FAILED).read_bytes()


def write(path: Path, size_bytes: int) -> None:
    """The same into a file."""
    with path.open("wb") as stream:
        stream.writelines(chunks(size_bytes))


def _varied(text: str, dice: random.Random) -> str:
    return _NUMBER.sub(lambda number: "".join(dice.choices("0123456789", k=len(number[0]))), text)


def _journal(text: str, dice: random.Random) -> bytes:
    """As journald keeps it."""
    before = f"Mar {dice.randrange(1, 29):02d} 10:{dice.randrange(60):02d}:01 box llama-server[812]: "
    return "".join(before + line + "\n" for line in text.splitlines()).encode()


def _noise(dice: random.Random) -> bytes:
    """A line that no other is like."""
    words = " ".join(
        f"{dice.choice('bcdfgklmnprst')}{dice.randrange(_WORDS):x}{dice.choice('aeiou')}" for _ in range(9)
    )
    kind = dice.randrange(3)
    if kind == 0:
        text = f'Mar 02 10:01:01 box llama-server[812]: request: {{"role": "user", "content": "{words}"}}'
    elif kind == 1:
        text = f"2026-03-02T10:01:01Z box proxy[77]: {dice.getrandbits(96):x} POST /v1/chat/completions 200 {words}"
    else:
        text = f"Mar 02 10:01:01 box app[913]: INFO {words}: stored {dice.getrandbits(64):x}"
    return text.encode() + b"\n"
