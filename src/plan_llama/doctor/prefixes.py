"""What journals, containers, wrappers and loggers put in front of an engine's own words."""

from __future__ import annotations

import re

_FRONT = 200  # characters of a line in which its prefixes stand
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_LEVEL = r"(?i:TRACE|DEBUG|INFO|SUCCESS|WARN|WARNING|ERROR|CRITICAL)"
_PREFIXES = tuple(
    re.compile(text)
    for text in (
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\s*",  # docker -t, kubernetes, LM Studio
        rf"{_MONTH}\s+\d+ \d\d:\d\d:\d\d \S+ [\w.@-]+\[\d+\]: ",  # journal
        rf"{_MONTH}\s+\d+ \d\d:\d\d:\d\d \S+ (?=kernel:)",
        r"[\w.-]+(?:-\d+)?\s+\| ",  # compose
        r"\[(?:DEBUG|INFO|WARN|WARNING|ERROR|TRACE)\]\s*(?:\[[^\]]*\]:?\s*)?",
        r"(?:stdout|stderr) [FP] ",  # CRI
        r"\[\d{2,5}\] ",  # the router's child port
        r"\d+\.\d\d\.\d{3}\.\d{3} [DIWE] ",  # llama.cpp since 2026
        r"\([A-Za-z_][\w.:]*(?: [A-Z]{2}\d+)*(?: rank=\d+)? ?pid=\d+(?:, ip=[^)\s]*)?\)\s*",  # vLLM's processes, Ray's
        r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[[^\]]*\]|\S+:\d+\])\s*",  # vLLM
        r"\[rank\d+\]:\s*",
        r"time=\S+ level=(?=\w+ )",  # Ollama
        rf"- [\w.:-]+ - {_LEVEL} - ",  # Python's logging, where a wrapper hands lines on at a level of its own
        rf"{_LEVEL}:[\w.]+:",
        rf"\| {_LEVEL} +\| \S+:\d+ - ",  # loguru
        rf'\{{"(?:level|severity)": ?"{_LEVEL}", ?"(?:msg|message)": ?"',
    )
)

# Who wrote a line, by what stands in front of it.
_VLLM = re.compile(
    r"\((?:EngineCore|APIServer|VllmWorker|Worker|RayWorkerWrapper|RayWorkerVllm|_AsyncLLMEngine)[\w.]*"
    r"(?: [A-Z]{2}\d+)*(?: rank=\d+)? ?pid=\d+"
    r"|\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[[\w./]+:\d+\]|[\w.]+\.py:\d+\])"
)
_CALM = re.compile(
    r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d \d\d:\d\d:\d\d|^(?:\(\w+ pid=\d+\) )?INFO: {2,}\d"
    r"|Error retrieving (?:safetensors|file list): |Failed to import Triton kernels"  # it goes on without them
)
_PROMPT = re.compile(
    r"\bReceived request [\w-]+: prompt: |^Input: \{\"|\bParsing chat message: |\"choices\": ?\[\{"
    r"|\brequest: +\{\"(?:messages|prompt|model|input)\"|\bresponse: +\{\"(?:choices|content|index)\""
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
_COLOURS = re.compile(
    rb"\x1b\[[0-9;?]*[A-Za-z]|(?:\x1b|\\u001b|\\x1b|\\033|\^\[|\xe2\x90\x9b)?\[\d{1,3}(?:;\d{1,3})*m"
)
_TYPESET = {
    "\u201c": '"',
    "\u201d": '"',
    "\u2018": "'",
    "\u2019": "'",
    "\u00a0": " ",
    "\u200b": "",
    "\ufeff": "",
}


def undressed(data: bytes) -> bytes:
    """Lines without the colours of a terminal (in a paste their first character is mostly lost), with plain quotes."""
    if b"\x1b" in data or b"[0m" in data or b"[0;0m" in data:
        data = _COLOURS.sub(b"", data)
    if not data.isascii():
        for typeset, character in _TYPESET.items():
            data = data.replace(typeset.encode(), character.encode())
    return data


def plain(text: str) -> str:
    """A line with the quotes that the engine wrote."""
    if "&" in text or "\\" in text:
        for spelled, character in _SPELLED:
            text = text.replace(spelled, character)
    return text


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


def engine(text: str) -> str:
    """The engine whose logger or process is named in front of a line; empty where none is."""
    return "vllm" if _VLLM.search(text[:_FRONT]) else ""


def calm(text: str) -> bool:
    """Whether a logger wrote a line below the level of errors, whatever its words are."""
    return bool(_CALM.search(text[:_FRONT]))


def prompt(text: str) -> bool:
    """Whether a line repeats what somebody asked or a model wrote, which may be about any failure."""
    return bool(_PROMPT.search(text[:_FRONT]))
