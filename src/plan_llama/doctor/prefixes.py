"""What journals, containers, wrappers and loggers put in front of an engine's own words."""

from __future__ import annotations

import re

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_PREFIXES = tuple(
    re.compile(text)
    for text in (
        r"\x1b\[[0-9;]*[A-Za-z]",  # colours
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\s*",  # docker -t, kubernetes, LM Studio
        rf"{_MONTH}\s+\d+ \d\d:\d\d:\d\d \S+ [\w.@-]+\[\d+\]: ",  # journal
        rf"{_MONTH}\s+\d+ \d\d:\d\d:\d\d \S+ (?=kernel:)",
        r"[\w.-]+(?:-\d+)?\s+\| ",  # compose
        r"\[(?:DEBUG|INFO|WARN|WARNING|ERROR|TRACE)\]\s*(?:\[[^\]]*\]:?\s*)?",
        r"(?:stdout|stderr) [FP] ",  # CRI
        r"\[\d{2,5}\] ",  # the router's child port
        r"\d+\.\d\d\.\d{3}\.\d{3} [DIWE] ",  # llama.cpp since 2026
        r"\((?:EngineCore|Worker|APIServer|VllmWorker|EngineCoreProc)[\w.]* ?(?:rank=\d+ )?(?:pid=\d+)\)\s*",
        r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[[^\]]*\]|\S+:\d+\])\s*",  # vLLM
        r"\[rank\d+\]:\s*",
        r"time=\S+ level=(?=\w+ )",  # Ollama
    )
)


# What forums, trackers and JSON make of quotes and spaces.
_SPELLED = (
    ("&quot;", '"'),
    ("&#39;", "'"),
    ("&#x27;", "'"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&amp;", "&"),
    ('\\"', '"'),
)
_CHARACTERS = str.maketrans(
    {
        "\u201c": '"',
        "\u201d": '"',
        "\u2018": "'",
        "\u2019": "'",
        "\u00a0": " ",
        "\u200b": None,
        "\ufeff": None,
    }
)


def plain(text: str) -> str:
    """A line with the quotes and spaces that the engine wrote."""
    if "&" in text or "\\" in text:
        for spelled, character in _SPELLED:
            text = text.replace(spelled, character)
    return text if text.isascii() else text.translate(_CHARACTERS)


def strip(text: str) -> str:
    """A line without them, however many there are."""
    rest = plain(text.rstrip("\r\n"))
    for _ in range(6):
        before = rest
        for prefix in _PREFIXES:
            if found := prefix.match(rest):
                rest = rest[found.end() :]
        if rest == before:
            return rest
    return rest
