"""Make tests/data/logs/real again: llama-server in situations that need no GPU, and what each of them is.

    PLAN_LLAMA_ENGINE_BIN=... python scripts/doctor_logs.py [CASE ...]

Linux only, with the packages `gguf` and `numpy`; two minutes. Every server runs inside a memory limit, on loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import gguf  # noqa: E402
from tests.engine import make_model  # noqa: E402
from tests.engine.make_model import DENSE, MOE, model_file  # noqa: E402

OUT = ROOT / "tests" / "data" / "logs" / "real"
GIB = 1024**3
_CAP_IPC_LOCK, _PR_CAPBSET_DROP = 14, 24
_WAIT_S = 40.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A situation. `expected` is what was done to the server, in the words of the catalogue; "" is a healthy one."""

    name: str
    expected: str
    argv: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[int, int] = field(default_factory=dict)
    locked_out: bool = False  # without the right to lock more than the limit
    ask: Callable[[int], None] | None = None
    kill_at: str = ""  # kill it, as the kernel would, once this line is there
    busy_port: bool = False
    rpc: bool = False


def prompt(words: int, path: str = "/completion", key: str = "prompt") -> Callable[[int], None]:
    """A request of many words; its answer does not matter."""

    def ask(port: int) -> None:
        body = json.dumps({key: "w100 " * words, "n_predict": 4}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=60).read()  # noqa: S310

    return ask


def files(folder: Path) -> dict[str, Path]:
    """The small model, and what people do to their files."""
    cache = folder / "cache"
    made = {"dense": folder / "dense-Q8_0.gguf", "moe": folder / "moe-Q8_0.gguf"}
    model_file(DENSE, cache).replace(made["dense"])
    model_file(MOE, cache).replace(made["moe"])
    whole = made["dense"].read_bytes()
    made["truncated"] = folder / "truncated-Q8_0.gguf"
    made["truncated"].write_bytes(whole[: len(whole) * 3 // 5])
    made["header-cut"] = folder / "header-cut-Q8_0.gguf"
    made["header-cut"].write_bytes(whole[:5000])
    made["web-page"] = folder / "web-page-Q8_0.gguf"
    made["web-page"].write_text(
        "<!DOCTYPE html><html><body>Sign in to continue</body></html>\n" * 40, encoding="utf-8"
    )
    made["new-architecture"] = folder / "new-architecture-Q8_0.gguf"
    made["new-architecture"].write_bytes(
        whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamx", 1)
    )
    made["other-tensors"] = folder / "other-tensors-Q8_0.gguf"
    made["other-tensors"].write_bytes(whole.replace(b"output_norm.weight", b"output_nurm.weight", 1))
    made["parts"] = folder / "parts-Q8_0.gguf"
    writer = make_model.gguf.GGUFWriter
    make_model.gguf.GGUFWriter = functools.partial(writer, split_max_tensors=60)
    try:
        make_model._write(DENSE, made["parts"])
    finally:
        make_model.gguf.GGUFWriter = writer
    first, made["part-2"] = sorted(folder.glob("parts-Q8_0-*-of-*.gguf"))
    alone = folder / "alone"
    alone.mkdir()
    made["part-1"] = first.rename(alone / first.name)
    return made


def cases(made: dict[str, Path]) -> Iterator[Case]:
    """All of them."""
    m = ("-m", str(made["dense"]), "-lv", "4")
    plain = ("-m", str(made["dense"]))
    yield Case(name="healthy", expected="", argv=(*m, "-c", "4096"), ask=prompt(20))
    yield Case(name="healthy-default-verbosity", expected="", argv=(*plain, "-c", "4096"), ask=prompt(20))
    yield Case(
        name="healthy-no-gpu-four-slots",
        expected="",
        argv=(*m, "-c", "8192", "-np", "4", "-kvu"),
        ask=prompt(20),
    )
    yield Case(name="context-too-large", expected="host-alloc-failed", limits={resource.RLIMIT_AS: 4 * GIB},
               argv=(*m, "-c", "2000000", "-fit", "off"))  # fmt: skip
    yield Case(name="memlock", expected="mlock-rlimit", limits={resource.RLIMIT_MEMLOCK: 65536}, locked_out=True,
               argv=(*m, "-c", "512", "--load-mode", "mlock"))  # fmt: skip
    for name, expected in (
        ("truncated", "gguf-truncated"),
        ("header-cut", "gguf-truncated"),
        ("web-page", "gguf-bad-magic"),
        ("new-architecture", "unknown-architecture"),
        ("other-tensors", "wrong-tensor-count"),
        ("part-2", "gguf-split-wrong-first"),
    ):
        yield Case(name=name, expected=expected, argv=("-m", str(made[name])))
    yield Case(name="split-missing", expected="gguf-split-missing", argv=("-m", str(made["part-1"])))
    yield Case(
        name="no-such-file",
        expected="file-not-found",
        argv=("-m", str(made["dense"].with_name("nothing.gguf"))),
    )
    yield Case(name="removed-flag", expected="flag-removed", argv=(*plain, "--mlock"))
    yield Case(
        name="flash-attn-bare", expected="flash-attn-needs-value", argv=(*plain, "-fa", "--host", "127.0.0.1")
    )
    yield Case(name="unknown-flag", expected="flag-unknown-old-build", argv=(*plain, "--gpu-speed", "fast"))
    yield Case(name="port-taken", expected="port-in-use", argv=plain, busy_port=True)
    yield Case(name="v-cache-without-flash-attn", expected="kv-quant-needs-fa",
               argv=(*m, "-fa", "off", "-ctv", "q8_0", "-fit", "off"))  # fmt: skip
    yield Case(name="no-rpc-server", expected="rpc-device-problem", argv=(*plain, "--rpc", "127.0.0.1:9"))
    yield Case(name="beyond-training", expected="ctx-beyond-training", argv=(*m, "-c", "16384", "-np", "1"))
    yield Case(name="divided-among-slots", expected="ctx-per-slot-divided",
               argv=(*m, "-c", "1024", "-np", "4", "--no-kv-unified"), ask=prompt(600))  # fmt: skip
    yield Case(name="request-too-long", expected="ctx-request-too-long", argv=(*m, "-c", "512", "-np", "1"),
               ask=prompt(900))  # fmt: skip
    yield Case(name="embedding-batch", expected="batch-too-small-for-embedding",
               argv=(*m, "-c", "2048", "--embedding", "-b", "64", "-ub", "64", "--pooling", "mean"),
               ask=prompt(200, "/embedding", "content"))  # fmt: skip
    yield Case(name="partial-offload", expected="partial-offload", rpc=True,
               argv=(*m, "-c", "2048", "-ngl", "5"))  # fmt: skip
    yield Case(
        name="healthy-offloaded", expected="", rpc=True, argv=(*m, "-c", "2048", "-ngl", "99"), ask=prompt(20)
    )
    yield Case(name="killed-while-loading", expected="log-ends-early", kill_at="loading model tensors",
               argv=(*m, "--load-mode", "none"))  # fmt: skip
    yield Case(name="draft-of-another-family", expected="draft-vocab-mismatch",
               argv=(*m, "-c", "512", "-md", str(made["moe"]), "--spec-type", "draft-simple"))  # fmt: skip
    yield Case(name="no-such-buffer", expected="too-many-tensor-overrides", argv=(*plain, "-ot", "ffn=NOPE"))
    yield Case(name="variable-and-flag", expected="note:env-overrides-flag", env={"LLAMA_ARG_CTX_SIZE": "2048"},
               argv=(*plain, "-c", "512"))  # fmt: skip
    yield Case(
        name="deprecated-flag",
        expected="note:flag-deprecated",
        argv=(*plain, "-c", "512", "--defrag-thold", "0.1"),
    )


def before(case: Case) -> Callable[[], None]:
    """The limits of the child."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for what, most in ({resource.RLIMIT_AS: 6 * GIB} | case.limits).items():
            resource.setrlimit(what, (most, most))
        if case.locked_out:
            libc.prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK, 0, 0, 0)
        libc.prctl(1, signal.SIGKILL)

    return prepare


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(case: Case, folder: Path, log: Path) -> None:
    """One server, until it has said what there is to say."""
    programs = Path(os.environ["PLAN_LLAMA_ENGINE_BIN"])
    port = free_port()
    argv = [
        str(programs / "llama-server"),
        *case.argv,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-warmup",
    ]
    if case.name.startswith("flash"):
        argv = [str(programs / "llama-server"), *case.argv]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")} | case.env
    env |= {"MALLOC_ARENA_MAX": "2"}
    with contextlib.ExitStack() as stack:
        if case.busy_port:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", port))
            taken.listen()
        if case.rpc:
            rpc = free_port()
            worker = subprocess.Popen(
                [str(programs / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(rpc)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=before(case),
                env=env | {"SIM_GPU_MIB": "2048"},
            )  # fmt: skip
            stack.callback(worker.kill)
            time.sleep(2)
            argv += ["--rpc", f"127.0.0.1:{rpc}"]
        with log.open("wb") as out:
            server = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=before(case),
            )
        stack.callback(server.kill)
        watch(case, server, log, port)
    text = log.read_text(encoding="utf-8", errors="replace")
    text = text.replace(str(folder), "/models").replace(str(programs), "/opt/llama.cpp")
    log.write_text(re.sub(r"(?m)^usage:.*\Z", "usage: ...\n", text, flags=re.DOTALL), encoding="utf-8")


def watch(case: Case, server: subprocess.Popen[Any], log: Path, port: int) -> None:
    """Ask, kill or wait."""
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end and server.poll() is None:
        text = log.read_bytes()
        if case.kill_at and case.kill_at.encode() in text:
            server.kill()
            break
        if b"listening on http" in text:
            if case.ask is not None:
                case.ask(port)
            time.sleep(0.5)
            server.terminate()
            break
        time.sleep(0.002 if case.kill_at else 0.05)
    server.wait(20)


def main(names: Sequence[str]) -> None:
    """Makes the named ones, or all, and the list of what they are."""
    OUT.mkdir(parents=True, exist_ok=True)
    index_file = OUT / "index.json"
    index = json.loads(index_file.read_text(encoding="utf-8")) if index_file.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in cases(files(folder)):
            if names and case.name not in names:
                continue
            run(case, folder, OUT / f"{case.name}.log")
            argv = [word.replace(str(folder), "/models") for word in case.argv]
            index[case.name] = {"expected": case.expected, "argv": argv, "build": "b11434"}
            sys.stdout.write(f"{case.name}\n")
            sys.stdout.flush()
    index_file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    assert gguf.__name__ == "gguf"  # noqa: S101 - the writer above is its
    main(sys.argv[1:])
