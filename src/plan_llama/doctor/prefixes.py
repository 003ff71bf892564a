"""What journals, containers, wrappers and loggers put in front of an engine's own words."""

from __future__ import annotations

import re

from plan_llama.doctor.unpack import message

FRONT = 200  # characters of a line, behind its prefixes, that tell who wrote it and what it is
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_LEVEL = r"(?i:TRACE|DEBUG|INFO|SUCCESS|WARN|WARNING|ERROR|CRITICAL)"
_DATE = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d)\b)?"
_CLOCK = r"\d\d?:\d\d:\d\d(?:[.,]\d+)?(?: [AP]M)?"
_UNIT = r"[\w.@:/-]+"  # of systemd, or a program
_PREFIXES = (
    rf"{_DATE}\s*",  # docker -t, kubernetes, LM Studio
    rf"\[{_DATE}\]:?\s+",
    rf"{_DATE}: ",  # nssm
    rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_DATE} [A-Z]{{3,4}} (?=\S+ {_UNIT}\[\d+\]: )",
    rf"{_MONTH}\s+\d+ {_CLOCK} \S+ {_UNIT}\[\d+\]: ",  # journal, syslog
    rf"{_MONTH}\s+\d+ {_CLOCK} \S+ (?=kernel:)",
    rf"{_MONTH}\s+\d+ {_CLOCK} ",  # ts
    r"\[ *\d+\.\d{6}\] (?=\S+ \S+: )",
    rf"[\w.-]+ {_UNIT}\[\d+\]: ",  # what a journal has behind other forms of time
    r"<\d{1,3}>(?:1 \S+ \S+ \S+ \S+ \S+ (?:-|\[[^\]]*\]) )?",  # syslog's number
    r"[\w.-]+(?:-\d+)?\s+\| ",  # compose
    r"\[pod/[^\]]+\] ",  # kubectl
    r"\[(?:DEBUG|INFO|WARN|WARNING|ERROR|TRACE)\]\s*",
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
)
_UPPER = r"(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL)(?::|\s|$)\s*"
_LEVELS = re.compile(_UPPER)
# What may be an engine's own words too, so that rules see the line with it as well: above all the level that a wrapper
# gives to every line of a stream.
_LABELS = (
    rf"{_UPPER}(?:\w+(?:\.\w+)+: )?(?!source=|\d\d-\d\d )",
    rf"\[{_LEVEL}\]:? ?(?:std(?:err|out): ?)?",
    r"(?:(?:DEBG|INFO|WARN|ERRO) )?'[\w-]+' std(?:err|out) output:",  # supervisord
    rf'\{{"(?:level|severity)": ?"{_LEVEL}", ?"(?:msg|message)": ?"',
    r"(?:> ?)+",  # mail, Markdown
    rf"\[{_CLOCK}\] ",
    rf"{_CLOCK}:? ",
    rf"\d\d?[/.]\d\d?[/.]\d{{2,4}},? {_CLOCK}\s+(?:\d+ +(?:Information|Warning|Error) +\S+ +)?",
    r"\[?\d{10}(?:\d{3})?(?:\.\d+)?\]?:? ",  # seconds since 1970
    r"##\[\w+\]",  # GitHub Actions
    r"\d+ *[|│] ",  # an editor
    r"(?:[\w./-]+\.(?:log|txt|out):)?\d+:(?!\d)",  # grep
    r"\s+",
)
_QUOTING = re.compile(  # logfmt
    rf"(?:{_LEVEL} )?"
    r'(?:(?:level|lvl|ts|time|t|caller|component|logger|stream|job|app|container|pod|namespace)=(?:"[^"]*"|[^\s"]+) )*'
    r'(?:msg|message|line|log)="(?P<said>.*)"\s*$'
)

_SURE = re.compile("|".join(_PREFIXES))
_ALL = re.compile("|".join((*_PREFIXES, *_LABELS)))
_MOST = 12  # of them in front of one line

# Who wrote a line, by what stands in front of it.
_VLLM = re.compile(
    r"\((?:EngineCore|APIServer|VllmWorker|Worker|RayWorkerWrapper|RayWorkerVllm|_AsyncLLMEngine)[\w.]*"
    r"(?: [A-Z]{2}\d+)*(?: rank=\d+)? ?pid=\d+"
    r"|\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[[\w./]+:\d+\]|[\w.]+\.py:\d+\])"
)
_CALM = re.compile(
    r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d \d\d:\d\d:\d\d|\bINFO: {2,}\S+:\d+ - "
    r"|Error retrieving (?:safetensors|file list): |Failed to import Triton kernels"  # it goes on without them
)
_PROMPT = re.compile(
    r"\bReceived request [\w-]+: prompt: |^Input: \{\"|\bParsing chat message: |\"choices\": ?\[\{"
    r"|\brequest: +\{\"(?:messages|prompt|model|input)\"|\bresponse: +\{\"(?:choices|content|index)\""
)

# What forums, trackers and JSON make of quotes and spaces.
_SPELLED = (
    ("&quot;", '"'),
    ("&#34;", '"'),
    ("&#39;", "'"),
    ("&#x27;", "'"),
    ("&apos;", "'"),
    ("&nbsp;", " "),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&amp;", "&"),
)
_ESCAPED_QUOTE = re.compile(r'\\+"')  # once for each string that it is within
_TAG = re.compile(r"</?(?:p|br|pre|code|span|div|li|td|tr)(?: [^<>]*)?/?>")
_TABBED = re.compile(r" +\d+\t|[^\t]{1,60}\t[^\t]{1,60}\t(?=\d{4}-)")  # `cat -n`, `gh run view --log`
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
_HEAD = 1 << 16  # bytes that tell whether it is JSON
_JSON_CHARACTER = re.compile(rb"\\u00([2-7][0-9a-fA-F])")


def undressed(data: bytes) -> bytes:
    """Lines without the colours of a terminal (in a paste their first character is mostly lost), with plain quotes."""
    if b"\\u00" in data[:_HEAD]:
        data = _JSON_CHARACTER.sub(_character, data)
    if b"\x1b" in data or b"[0m" in data or b"[0;0m" in data:
        data = _COLOURS.sub(b"", data)
    if not data.isascii():
        for typeset, character in _TYPESET.items():
            data = data.replace(typeset.encode(), character.encode())
    return data


def _character(found: re.Match[bytes]) -> bytes:
    """Go writes `\\u003c` where others write `<`. A quote stays as it is: JSON may be read yet."""
    code = int(found[1], 16)
    return found[0] if code in (0x22, 0x5C) else bytes([code])


def plain(text: str) -> str:
    """A line with the quotes and blanks that the engine wrote."""
    if "&" in text:
        for spelled, character in _SPELLED:
            text = text.replace(spelled, character)
    if '\\"' in text:
        text = _ESCAPED_QUOTE.sub('"', text)
    if "\t" in text:
        found = _TABBED.match(text)
        text = text[found.end() if found else 0 :].replace("\t", " ")
    return _TAG.sub("", text) if "<" in text else text


def split(raw: str) -> tuple[str, str, str]:
    """A line as it stands; without what is surely in front of it; without all that may be. JSON is what it says."""
    whole = plain(raw.rstrip("\r\n"))
    labelled = said = _without(whole, _SURE)
    if said.startswith('{"') and (inside := message('{"' + raw.partition('{"')[2])) is not None:
        said = plain(inside.strip().replace("\n", " "))
    elif found := _QUOTING.match(whole) or _QUOTING.match(said):
        said = found["said"]
    return whole, labelled, _without(said, _ALL).rstrip()


def known(labelled: str, template: str) -> str:
    """What a rule may mean: `ERROR: Wheel is invalid` with its level, but not `error loading` in `ERROR Loading`."""
    found = _LEVELS.match(labelled)
    return labelled if found is None or found[1] in template else labelled[found.end() :]


def strip(text: str) -> str:
    """A line without what is in front of it."""
    return split(text)[2]


def _without(text: str, prefix: re.Pattern[str]) -> str:
    """However many there are."""
    at = 0
    for _ in range(_MOST):
        found = prefix.match(text, at)
        if found is None:
            break
        at = found.end()
    return text[at:]


def engine(front: str) -> str:
    """The engine whose logger or process is named in front of a line; empty where none is."""
    return "vllm" if _VLLM.search(front) else ""


def calm(front: str) -> bool:
    """Whether a logger wrote a line below the level of errors, whatever its words are."""
    return bool(_CALM.search(front))


def prompt(front: str) -> bool:
    """Whether a line repeats what somebody asked or a model wrote, which may be about any failure."""
    return bool(_PROMPT.search(front))
