"""Start real engine processes for a test: inside a memory limit, on loopback, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
# Address space, not resident memory: it holds the file mapping, thread stacks and arenas as well.
ADDRESS_SPACE_BYTES = 6 * 1024**3
STOP_WITHIN_S = 10.0
_PR_SET_PDEATHSIG = 1


def engine_env(bin_folder: Path, **more: str) -> dict[str, str]:
    """This process's environment, the engine's programs first on PATH, without what would steer them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "SIM_GPU"))}
    env["PATH"] = f"{bin_folder}{os.pathsep}{env.get('PATH', '')}"
    env["MALLOC_ARENA_MAX"] = "2"  # each arena of glibc reserves 64 MiB of the address space
    return env | more


def _limit(address_space_bytes: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None)

    def before_exec() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # The child also ends when the test run itself is killed.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return before_exec


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    log: Path,
    address_space_bytes: int = ADDRESS_SPACE_BYTES,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own with its output in `log`; the whole group is ended on every way out."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_limit(address_space_bytes),
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        # The leader may be gone while a child of its group is not: the group is signalled in any case.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, wanted)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_WITHIN_S)


def finished(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout_s: float = 120.0,
    address_space_bytes: int = ADDRESS_SPACE_BYTES,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the engine to its end, inside the memory limit. Raises TimeoutExpired."""
    return subprocess.run(
        [str(word) for word in argv],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        preexec_fn=_limit(address_space_bytes),
    )


def free_port() -> int:
    """A port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, what: str, timeout_s: float
) -> None:
    """Wait for a process to become ready. Raises AssertionError with the end of its log where it does not."""
    end = time.monotonic() + timeout_s
    while not ready():
        gone = process.poll()
        if gone is not None or time.monotonic() > end:
            why = f"ended with {gone}" if gone is not None else f"was not ready after {timeout_s:.0f} s"
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise AssertionError(f"{what} {why}:\n{tail}")
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether something accepts connections at a port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def ask(port: int, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 60.0) -> Any:
    """The JSON that a server on loopback answers; None while it does not (no connection, still loading)."""
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read(1 << 20))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None
