"""What carries a log from an engine to doctor: journals, containers, loggers, shells, trackers, terminals.

Each takes a text and gives the bytes that would be stored or pasted. `CARRIERS` lose nothing; those of `WRAPS` break
words in two, which a reader can only guess, and `MIXED` put a healthy log of the same engine beside it.
"""

from __future__ import annotations

import html
import io
import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from tests.unit.doctor.logs import LOGS

Carrier = Callable[[str], bytes]
_BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_LEVEL = re.compile(r"\b(ERROR|WARN(?:ING)?|INFO|error|failed|warning)\b")


def _when(number: int) -> datetime:
    """The time of a line: every fourth comes in the next second."""
    return _BEGAN + timedelta(milliseconds=250 * number)


def _each(line: Callable[[str, int], str], end: str = "\n") -> Carrier:
    """A carrier that does something to each line, by its number."""
    return lambda text: "".join(line(row, at) + end for at, row in enumerate(text.splitlines())).encode()


def _front(layout: str) -> Carrier:
    """What stands before each line; `strftime` fills in its time."""

    def line(row: str, at: int) -> str:
        when = _when(at)
        filled = layout.replace("MILLI", f"{when.microsecond // 1000:03d}").replace(
            "EPOCH", f"{when.timestamp():.0f}"
        )
        return (
            when.strftime(filled.replace("MICRO", f"{when.microsecond:06d}").replace("AT", f"{at + 1:4d}"))
            + row
        )

    return _each(line)


def _go_json(value: object) -> str:
    """As Go's encoder writes it: without blanks, and the marks of HTML as escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _docker(row: str, at: int) -> str:
    return _go_json(
        {"log": row + "\n", "stream": "stderr", "time": _when(at).isoformat().replace("+00:00", "Z")}
    )


def _journal_json(row: str, at: int) -> str:
    control = any(ord(character) < 32 for character in row)
    return json.dumps(
        {
            "__REALTIME_TIMESTAMP": f"{_when(at).timestamp() * 1e6:.0f}",
            "PRIORITY": "6",
            "_SYSTEMD_UNIT": "ollama.service",
            "SYSLOG_IDENTIFIER": "ollama",
            "MESSAGE": list(row.encode()) if control else row,
            "_PID": "812",
        },
        ensure_ascii=False,
    )


def _export(row: str, at: int) -> str:
    return (
        f"__CURSOR=s=ab;i={at:x};b=cd\n__REALTIME_TIMESTAMP={_when(at).timestamp() * 1e6:.0f}\n_PID=812\n"
        f"PRIORITY=6\nSYSLOG_IDENTIFIER=ollama\n_SYSTEMD_UNIT=ollama.service\nMESSAGE={row}\n"
    )


def _cri_parts(row: str, at: int) -> str:
    """Long lines in parts, here of 60 characters."""
    parts = [row[place : place + 60] for place in range(0, len(row), 60)] or [""]
    when = _when(at).strftime("%Y-%m-%dT%H:%M:%S.") + f"{_when(at).microsecond:06d}123Z"
    return "\n".join(
        f"{when} stderr {'P' if part < len(parts) - 1 else 'F'} {text}" for part, text in enumerate(parts)
    )


def _coloured(row: str, at: int) -> str:
    """Levels in colour, and each line in one."""
    return f"\x1b[3{at % 7 + 1}m" + _LEVEL.sub("\x1b[1;31m\\1\x1b[0m", row) + "\x1b[0m"


def _logfmt(layout: str) -> Carrier:
    def line(row: str, at: int) -> str:
        quoted = row.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
        return layout.replace("WHEN", _when(at).strftime("%Y-%m-%dT%H:%M:%SZ")).replace("TEXT", quoted)

    return _each(line)


def _fenced(text: str) -> bytes:
    return (
        "### What happened\n\nHi all, since the update it prints this here:\n\n```text\n"
        + text.rstrip("\n")
        + "\n```\n\nIt is a box with Debian 13. Any idea? Thanks!\n"
    ).encode()


def _page(text: str) -> bytes:
    return ("<pre><code>" + html.escape(text) + "</code></pre>\n").encode()


def _page_of_rows(text: str) -> bytes:
    return "".join(f"<p>{html.escape(row)}<br></p>\n" for row in text.splitlines()).encode()


def _rich(text: str) -> bytes:
    """As rich's handler lays it out at 120 columns: the time once a second, the path at the right end."""
    screen = io.StringIO()
    handler = RichHandler(
        console=Console(file=screen, width=120), highlighter=NullHighlighter(), log_time_format="[%X]"
    )
    for at, row in enumerate(text.splitlines()):
        record = logging.LogRecord("wrapper", logging.INFO, "server.py", 42, row, (), None)
        record.created = _when(at).timestamp()
        handler.emit(record)
    return screen.getvalue().encode()


def _wrapped(columns: int) -> Carrier:
    """A copy from a terminal of that width: words are cut where a row ends."""
    return _each(
        lambda row, _: "\n".join(row[at : at + columns] for at in range(0, len(row), columns)) if row else ""
    )


def _actions(row: str, at: int) -> str:
    return f"test\tRun the server\t{_when(at).strftime('%Y-%m-%dT%H:%M:%S')}.6789012Z {row}"


def _supervisord(row: str, at: int) -> str:
    return f"{_when(at).strftime('%Y-%m-%d %H:%M:%S')},678 DEBG 'ollama' stderr output:\n{row}"


CARRIERS: Mapping[str, Carrier] = {
    # containers
    "compose": _front("ollama-1  | "),
    "compose, coloured": _front("\x1b[36mllama-server-1  |\x1b[0m "),
    "kubectl --timestamps": _front("%Y-%m-%dT%H:%M:%S.MICRO901Z "),
    "kubectl --prefix": _front("[pod/llama-7f9c-x2x/server] "),
    "CRI": _front("%Y-%m-%dT%H:%M:%S.MICRO901Z stderr F "),
    "CRI in parts": _each(_cri_parts),
    "docker json-file": _each(_docker),
    # journals
    "journal short": _front("Jan %d %H:%M:%S box ollama[812]: "),
    "journal short-iso": _front("%Y-%m-%dT%H:%M:%S+0100 box ollama[812]: "),
    "journal short-precise": _front("Jan %d %H:%M:%S.MICRO box ollama[812]: "),
    "journal short-iso-precise": _front("%Y-%m-%dT%H:%M:%S.MICRO+01:00 box ollama[812]: "),
    "journal short-full": _front("Fri %Y-%m-%d %H:%M:%S CET box ollama[812]: "),
    "journal short-monotonic": _front("[ 1234.MICRO] box ollama[812]: "),
    "journal short-unix": _front("EPOCH.MICRO box ollama[812]: "),
    "journal with-unit": _front("Fri %Y-%m-%d %H:%M:%S CET box ollama.service[812]: "),
    "journal json": _each(_journal_json),
    "journal export": _each(_export),
    "journal cat": _each(lambda row, _: row),
    "syslog": _front("<30>Jan  2 %H:%M:%S box ollama[812]: "),
    "syslog without a number": _front("Jan  2 %H:%M:%S box ollama: "),
    "syslog 5424": _front("<30>1 %Y-%m-%dT%H:%M:%S.MICROZ box ollama 812 - - "),
    # terminals and encodings
    "colours": _each(_coloured),
    "CRLF": _each(lambda row, _: row, "\r\n"),
    "UTF-8 with BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16 LE": lambda text: b"\xff\xfe" + text.replace("\n", "\r\n").encode("utf-16-le"),
    "UTF-16 BE": lambda text: b"\xfe\xff" + text.replace("\n", "\r\n").encode("utf-16-be"),
    "tabs": _each(lambda row, _: row.replace(" ", "\t")),
    "trailing blanks": _each(lambda row, _: f"{row:200}"),
    "blank lines": _each(lambda row, _: row, "\n\n"),
    # trackers, mail, pages
    "mail": _front("> "),
    "mail, quoted again": _front(">> > "),
    "four blanks": _front("    "),
    "fenced": _fenced,
    "page": _page,
    "page of rows": _page_of_rows,
    "JSON string": lambda text: (json.dumps({"body": text}) + "\n").encode(),
    "JSON string, indented": lambda text: json.dumps({"title": "It fails", "log": text}, indent=2).encode(),
    "editor": _front("AT | "),
    "cat -n": _front("  AT\t"),
    "grep -n": _each(lambda row, at: f"{at + 1}:{row}"),
    "grep -Hn": _each(lambda row, at: f"server.log:{at + 1}:{row}"),
    # times
    "[date time]": _front("[%Y-%m-%d %H:%M:%S] "),
    "date time,ms": _front("%Y-%m-%d %H:%M:%S,MILLI "),
    "date time:": _front("%Y-%m-%d %H:%M:%S.MILLI: "),
    "Go's time": _front("%Y/%m/%d %H:%M:%S "),
    "time.ms": _front("%H:%M:%S.MILLI "),
    "[time]": _front("[%H:%M:%S] "),
    "epoch": _front("EPOCH.MILLI "),
    "[epoch]": _front("[EPOCHMILLI] "),
    "ts": _front("Jan %d %H:%M:%S "),
    "US time": _front("%m/%d/%Y %I:%M:%S AM "),
    # loggers
    "INFO:": _front("INFO: "),
    "INFO:     ": _front("INFO:     "),
    "ERROR": _front("ERROR "),
    "[ERROR]": _front("[ERROR] "),
    "[error] stderr:": _front("[error] stderr: "),
    "date [level]": _front("%Y-%m-%d %H:%M:%S,MILLI [ERROR] "),
    "date level name": _front("%Y-%m-%d %H:%M:%S,MILLI ERROR wrapper.runner: "),
    "date - name - level": _front("%Y-%m-%d %H:%M:%S,MILLI - wrapper.runner - ERROR - "),
    "loguru": _front("%Y-%m-%d %H:%M:%S.MILLI | ERROR    | wrapper.runner:run:42 - "),
    "logfmt": _logfmt('level=error ts=WHEN caller=runner.go:42 msg="TEXT"'),
    "logrus": _logfmt('time="WHEN" level=info msg="TEXT"'),
    "logfmt, line": _logfmt('ts=WHEN level=error component=llama line="TEXT"'),
    "JSON logger": _each(
        lambda row, at: json.dumps({"level": "error", "ts": _when(at).timestamp(), "msg": row})
    ),
    "supervisord": _each(_supervisord),
    "nssm": _front("%Y-%m-%d %H:%M:%S.MILLI: "),
    "Windows event": _front("1/2/2026 3:04:05 AM     1000 Information     ollama     "),
    "GitHub Actions": _front("%Y-%m-%dT%H:%M:%S.MICRO2Z "),
    "gh run view": _each(_actions),
    "rich": _rich,
    # repeated
    "each line twice": _each(lambda row, _: f"{row}\n{row}"),
    "twice": lambda text: (text.rstrip("\n") + "\n" + text).encode(),
}
WRAPS: Mapping[str, Carrier] = {f"wrapped at {columns}": _wrapped(columns) for columns in (80, 100, 120)}


# A good start and requests, in words of stored healthy logs.
_HEALTHY = {
    "ollama": """\
time=2026-03-04T10:11:12.000Z level=INFO source=routes.go:1742 msg="Listening on 127.0.0.1:11434 (version 0.30.0)"
time=2026-03-04T10:12:20.391Z level=INFO source=sched.go:473 msg="loaded runners" count=1
time=2026-03-04T10:12:20.391Z level=INFO source=server.go:1250 msg="waiting for llama runner to start responding"
time=2026-03-04T10:12:20.895Z level=INFO source=server.go:1288 msg="llama runner started in 6.22 seconds"
[GIN] 2026/03/04 - 10:12:21 | 200 |  6.694510783s |      172.18.0.6 | POST     "/v1/embeddings"
""",
    "vllm": """\
(APIServer pid=90458) INFO 02-13 11:32:01 [api_server.py:1351] vLLM API server version 0.15.0
(APIServer pid=90458) INFO:     Started server process [90458]
(APIServer pid=90458) INFO:     Waiting for application startup.
(APIServer pid=90458) INFO:     Application startup complete.
(APIServer pid=90458) INFO:     192.0.2.18:51408 - "POST /v1/chat/completions HTTP/1.1" 200 OK
""",
}


def mixed(engine: str) -> Mapping[str, Carrier]:
    """A log behind, and before, 200 lines of a healthy one of the same engine, llama.cpp where it is not known."""
    if engine in _HEALTHY:
        start = _HEALTHY[engine].splitlines(keepends=True)
    else:  # up to its first request
        whole = (LOGS / "real" / "healthy-default-verbosity.log").read_text(encoding="utf-8")
        start = whole.splitlines(keepends=True)[:-1]
    healthy = "".join(start) + (200 - len(start)) * start[-1]
    return {
        "behind a healthy log": lambda text: (healthy + text).encode(),
        "before a healthy log": lambda text: (text.rstrip("\n") + "\n" + healthy).encode(),
    }
