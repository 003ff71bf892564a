"""Inference engines on this machine: which, which build, which backends.

Programs are run as argv, with a time limit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from plan_llama.errors import InputError
from plan_llama.hardware import cache
from plan_llama.hardware.types import InstalledEngine, ProbeNote

_TOPIC = "engines"
_CACHE_FORMAT = 2  # what is kept of an answer; another number makes the program be asked again
_LIMIT_S = 20.0  # a CUDA build compiles its kernels for a new card on the first start
_MOST_CHARS = 256 * 1024  # --help of b11434 has 60,000

Runner = Callable[[list[str]], str]

# `version: 11434 (1a2b3c4)` until mid-2026, then `version: 0.6.0-dev (build 11434, commit 1a2b3c4)`
# (common/build-info.cpp.in, b11434).
_VERSION_OLD = re.compile(r"^version: (\d+) \(([^)\s]+)\)", re.MULTILINE)
_VERSION = re.compile(r"^version: (\S+) \(build (\d+), commit ([^)\s]+)\)", re.MULTILINE)
_DEVICE = re.compile(r"^  (?=([A-Za-z]+)\d+: )", re.MULTILINE)
# The names of ggml's backends by the device names and shared libraries that they have.
_BACKENDS = ("cuda", "rocm", "hip", "vulkan", "metal", "sycl", "rpc", "musa", "cann", "opencl", "blas")


def run(argv: list[str]) -> str:
    """Both streams of a program, cut at 256 Ki characters. Raises OSError or TimeoutError."""
    import subprocess

    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"no answer in {_LIMIT_S:.0f} s") from error
    return (done.stdout + b"\n" + done.stderr)[:_MOST_CHARS].decode("utf-8", "replace")


def parse_llama(version_text: str, devices_text: str, libraries: Iterable[str] = ()) -> dict[str, Any]:
    """Build number, commit, devices and backends from `--version`, `--list-devices` and the libraries
    beside.
    """
    found: dict[str, Any] = {}
    if match := _VERSION.search(version_text):
        found |= {"version": match[1], "build": int(match[2]), "commit": match[3]}
    elif match := _VERSION_OLD.search(version_text):
        found |= {"version": f"b{match[1]}", "build": int(match[1]), "commit": match[2]}
    if found.get("commit") == "unknown":
        del found["commit"]
    lines = devices_text.partition("Available devices:")[2].splitlines()
    devices = [line.strip() for line in lines if _DEVICE.match(line)]
    names = {re.split(r"\d", device)[0].lower() for device in devices}
    names |= {match[1] for name in libraries if (match := re.match(r"(?:lib)?ggml-([a-z]+)\b", name))}
    # ggml calls Metal devices MTL0, and ROCm's library hip.
    names = {{"mtl": "metal", "hip": "rocm"}.get(name, name) for name in names}
    found |= {"devices": devices, "backends": [name for name in _BACKENDS if name in names]}
    return found


_HELP_LINE = re.compile(r"^(-[\w.-]+(?:,\s+-[\w.-]+)*)(?: (\S+(?: \S+)*?))?(?:\s{2,}|$)")


def parse_help(text: str) -> list[str]:
    """The arguments that `--help` lists, as "-fa,--flash-attn [on|off|auto]": names, then what the value looks like.

    A value of `-ngl` that may also be the word `all` is written "N|all".
    """
    found: list[str] = []
    for line in text.splitlines():
        match = _HELP_LINE.match(line)
        if match and not line.startswith("---"):
            names = ",".join(re.split(r",\s+", match[1]))
            found.append(f"{names} {match[2] or ''}".strip())
        elif found and "'all'" in line and found[-1].startswith("-ngl,") and not found[-1].endswith("|all"):
            found[-1] += "|all"
    return found


def _kind(path: Path) -> Literal["llama.cpp", "ik_llama.cpp"]:
    """ik_llama.cpp's programs have llama.cpp's names; its folder tells."""
    return "ik_llama.cpp" if "ik_llama" in str(path) else "llama.cpp"


def _ask_llama(path: Path, runner: Runner) -> dict[str, Any]:
    libraries = [
        entry.name
        for folder in (path.parent, path.parent.parent / "lib")
        if folder.is_dir()
        for entry in folder.glob("*ggml-*")
    ]
    found = parse_llama(runner([str(path), "--version"]), runner([str(path), "--list-devices"]), libraries)
    return {**found, "arguments": parse_help(runner([str(path), "--help"]))}


def _ask_ollama(path: Path, runner: Runner) -> dict[str, Any]:
    answer = runner([str(path), "--version"])
    # Without a running server: `Warning: client version is 0.12.3`.
    match = re.search(r"version is v?(\d[^\s]*)", answer)
    return {"version": match[1]} if match else {}


def _ask_vllm(path: Path, runner: Runner) -> dict[str, Any]:
    match = re.search(r"^v?(\d+\.\d+[^\s]*)$", runner([str(path), "--version"]), re.MULTILINE)
    return {"version": match[1]} if match else {}


def _cached(path: Path, ask: Callable[[Path, Runner], dict[str, Any]], runner: Runner) -> dict[str, Any]:
    """What the program answered, kept until the file changes (path, size and time of change)."""
    state = path.stat()
    known = cache.read(_TOPIC).get(str(path))
    stamp = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    stamp["format"] = _CACHE_FORMAT
    if isinstance(known, dict) and all(known.get(key) == value for key, value in stamp.items()):
        return known
    answer = ask(path, runner)
    if answer.get("version"):  # a program that failed may work later
        cache.write(_TOPIC, str(path), {**answer, **stamp})
    return answer


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def describe(
    path: Path, engine: Literal["llama.cpp", "ik_llama.cpp", "ollama", "vllm"], runner: Runner = run
) -> InstalledEngine:
    """One engine by its program. What it does not answer is None, with the reason in `note`.

    Raises OSError for a path that is not there.
    """
    ask = {"ollama": _ask_ollama, "vllm": _ask_vllm}.get(engine, _ask_llama)
    note = None
    try:
        found = _cached(path, ask, runner)
        if not found.get("version"):
            note = "it did not tell its version"
    except (OSError, TimeoutError) as error:
        path.stat()
        found, note = {}, f"it does not run: {error}"
    build, version, commit = found.get("build"), found.get("version"), found.get("commit")
    return InstalledEngine(
        engine=engine,
        path=str(path),
        version=version if isinstance(version, str) else None,
        build=build if isinstance(build, int) else None,
        commit=commit if isinstance(commit, str) else None,
        backends=_texts(found.get("backends")),
        devices=_texts(found.get("devices")),
        arguments=_texts(found.get("arguments")),
        note=note,
    )


def _vllm_package() -> InstalledEngine | None:
    """vLLM in this Python, by its metadata: importing it would import torch."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    try:
        return InstalledEngine(engine="vllm", path=sys.executable, version=version("vllm"))
    except PackageNotFoundError:
        return None


def llama_programs(
    engine_path: str | None, *, which: Callable[..., str | None] | None = None
) -> tuple[Path | None, Path | None]:
    """llama-fit-params and llama-server of this machine, of one folder; None for one that is not there.

    `engine_path` names a program of the engine, or their folder; else they are those on PATH. Raises InputError where
    there is neither.
    """
    if which is None:
        import shutil

        which = shutil.which
    get = "a release from https://github.com/ggml-org/llama.cpp/releases has them, as has `brew install llama.cpp`"
    if engine_path is not None:
        given = Path(engine_path)
        if not given.exists():
            raise InputError(
                f"{given}: no such program", hint="name llama-server, or the folder that holds it"
            )
        folder = (given if given.is_dir() else given.resolve().parent).absolute()
    else:
        on_path = which("llama-server") or which("llama-fit-params")
        if on_path is None:
            hint = f"{get}; --engine-path names their folder"
            raise InputError("no llama-server or llama-fit-params on PATH to verify with", hint=hint)
        folder = Path(on_path).resolve().parent
    fit, server = (which(name, path=str(folder)) for name in ("llama-fit-params", "llama-server"))
    if fit is None and engine_path is None and (fit := which("llama-fit-params")):
        server = which("llama-server", path=str(Path(fit).parent))
    if fit is None and server is None:
        raise InputError(f"{folder}: no llama-server or llama-fit-params there to verify with", hint=get)
    return Path(fit) if fit else None, Path(server) if server else None


def installed(
    engine_path: str | None = None, *, runner: Runner = run, which: Callable[[str], str | None] | None = None
) -> tuple[list[InstalledEngine], list[ProbeNote]]:
    """llama-server, Ollama and vLLM on PATH; `engine_path` names a llama-server (or its folder) instead.

    Raises InputError where `engine_path` is not there.
    """
    if which is None:
        import shutil

        which = shutil.which
    found: list[InstalledEngine] = []
    server = which("llama-server")
    if engine_path is not None:
        path = Path(engine_path)
        path = path / "llama-server" if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"{path}: no such program", hint="name llama-server, or the folder that holds it"
            )
        server = str(path)
    if server:
        real = Path(server).resolve()
        found.append(describe(real, _kind(real), runner))
    if ollama := which("ollama"):
        found.append(describe(Path(ollama).resolve(), "ollama", runner))
    if package := _vllm_package():
        found.append(package)
    elif vllm := which("vllm"):
        found.append(describe(Path(vllm).absolute(), "vllm", runner))
    notes = [
        ProbeNote(
            probe="engine",
            reason=f"{engine.path}: {engine.note}",
            unlock="run it by hand; its own message tells more",
        )
        for engine in found
        if engine.note
    ]
    if not found:
        reason = "none of llama-server, ollama and vllm is on PATH: a plan needs none, its command does"
        unlock = "--engine-path FILE names a llama-server that is elsewhere"
        notes.append(ProbeNote(probe="engine", reason=reason, unlock=unlock))
    return found, notes
