"""Run a server in a process group of its own until it is no longer wanted, and know when it answers.

llama-server answers GET /health with 503 while it loads and with 200 once it serves, without asking for a key
(tools/server/server-http.cpp, b11434).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from plan_llama.engines.bounded import Ended, Start

_PAUSE_S = 0.2
_ANSWER_S = 5.0
_TAIL_BYTES = 16 << 10
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - how such a server is reached from here


@dataclass(slots=True)
class Server:
    """A server that was started. `log` holds the end of what it printed; all of it goes to standard error."""

    argv: tuple[str, ...]
    host: str
    port: int
    process_id: int = 0
    started: float = field(default_factory=time.monotonic)
    _start: Start | None = None
    _log: bytearray = field(default_factory=bytearray)
    _reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = _EVERY.get(self.host.strip("[]"), self.host.strip("[]"))
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def wait_ready(self, timeout_s: float) -> str:
        """Empty once it serves; else why it does not: it ended, or the time is over."""
        while not self._answers():
            if (code := self.poll()) is not None:
                return f"it ended before it answered: {self.how(code)}"
            if time.monotonic() - self.started > timeout_s:
                return f"it did not answer within {timeout_s:.0f} s"
            time.sleep(_PAUSE_S)
        return ""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._start.process().poll() if self._start else None

    def wait(self) -> int:
        """Waits until it ends by itself."""
        while (code := self.poll()) is None:
            time.sleep(_PAUSE_S)
        return code

    def how(self, code: int) -> str:
        """How it ended, with the line of its log that says most."""
        if self._reader is not None:
            self._reader.join(2.0)
        text = bytes(self._log).decode("utf-8", "replace")
        ended = Ended(argv=self.argv, code=code, seconds=time.monotonic() - self.started, err=text)
        return f"{ended.how}; {ended.last_words}" if ended.last_words else ended.how

    def _answers(self) -> bool:
        host = _EVERY.get(self.host.strip("[]"), self.host.strip("[]"))
        connection = http.client.HTTPConnection(host, self.port, timeout=_ANSWER_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _copy(self, stream: IO[bytes]) -> None:
        """What it prints goes to standard error as it comes."""
        with contextlib.suppress(OSError, ValueError):
            while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader
                self._log += chunk
                del self._log[:-_TAIL_BYTES]
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(chunk.decode("utf-8", "replace"))
                    sys.stderr.flush()


@contextlib.contextmanager
def running(argv: Sequence[str], env: Mapping[str, str], *, host: str, port: int) -> Iterator[Server]:
    """The server, started; it and all that it started is ended however this is left.

    Raises OSError where it cannot be started, ValueError for a word with a NUL character.
    """
    server = Server(tuple(argv), host, port)
    start = Start(argv, env, together=True)
    try:
        process = start.process()
        server.process_id, server._start = process.pid, start
        if process.stdout is not None:
            server._reader = threading.Thread(target=server._copy, args=(process.stdout,), daemon=True)
            server._reader.start()
        yield server
    finally:
        start.end()


def port_taken(host: str, port: int) -> bool:
    """Whether another program listens where the server is to listen."""
    with contextlib.suppress(OSError):
        family, kind, number, _, address = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            if sys.platform != "win32":  # there it would let two programs have the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError:
                return True
    return False
