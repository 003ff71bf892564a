#!/usr/bin/env python3
"""Install vLLM's own Python code once, without a GPU, and print the interpreter that has it.

usage: vllm_environment.py

For the tests marked `vllm` (its argument parser) and scripts/vllm_oracle.py (its model classes and cache planning). The
environment is kept under $PLAN_LLAMA_VLLM_CACHE (else ~/.cache/plan-llama/vllm), one folder per version and Python; it
takes about two minutes and 1.5 GB where the index offers torch for Linux as a CPU build, and some GB more where it does
not. Compiled code of vLLM is removed again: nothing here runs it. Progress goes to standard error; the last line of
standard output is the path. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "0.33.0"
SCRIPT_VERSION = 1  # raise it when a change below makes another environment
TORCH = ("torch==2.13.0",)
# What the parser, the configuration and the model classes import; vLLM's own requirements want CUDA builds.
NEEDED = (
    "packaging", "regex", "pyyaml", "pydantic>=2.12", "numpy", "cbor2", "psutil", "pyzmq", "urllib3",
    "transformers>=5.16.1,<5.21.0", "aiohttp", "requests", "oss-harmony", "openai", "msgspec", "cloudpickle", "pillow",
    "pybase64", "cachetools", "uvloop", "py-cpuinfo", "fastapi<0.137", "prometheus-client", "partial-json-parser",
    "llguidance<1.8.0", "apache-tvm-ffi==0.1.11", "uvicorn", "watchfiles", "orjson", "einops",
)  # fmt: skip
ALONE = (f"vllm=={VERSION}", "xgrammar==0.2.8", "compressed-tensors==0.17.0", "loguru")


def main() -> int:
    """The environment, made where it is not there yet."""
    if sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)):
        sys.stderr.write("vllm_environment.py: vLLM 0.33 needs Python 3.11 to 3.13\n")
        return 2
    base = Path(os.environ.get("PLAN_LLAMA_VLLM_CACHE") or Path.home() / ".cache" / "plan-llama" / "vllm")
    folder = base / f"{VERSION}-{SCRIPT_VERSION}-py{sys.version_info[0]}.{sys.version_info[1]}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / f"{folder.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").is_file():
            make(folder)
    sys.stdout.write(f"{folder / 'bin' / 'python'}\n")
    return 0


def make(folder: Path) -> None:
    """A fresh environment with everything in it."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--no-cache-dir", "--quiet", "--disable-pip-version-check")
    run(*pip, *TORCH)
    run(*pip, *NEEDED)
    run(*pip, "--no-deps", *ALONE)
    for package in folder.glob("lib/python*/site-packages/vllm"):
        for path in (*package.rglob("*.so"), *package.rglob("vllm-rs")):
            path.unlink()
    (folder / "complete").touch()


def run(*argv: str) -> None:
    """A program whose output goes to standard error."""
    sys.stderr.write(f"+ {' '.join(argv[:12])}\n")
    sys.stderr.flush()
    subprocess.run(argv, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
