"""Measure what ik_llama.cpp reserves, for headers of real size, without their weights.

usage: python -m tests.engine.record_ik FOLDER [--model NAME]... > tests/data/ik_llama/memory.jsonl

FOLDER holds its programs llama-server and rpc-server, built with GGML_RPC=ON and no backend for a GPU. The weights are
a hole in a file that is never read (`--dry-run --no-mmap`; where a file is mapped, its dry run takes weights on the
host for parts of the compute buffer). Buffers of any size are asked for and not touched: tools/sparse_malloc.c lets the
system give them. A card is its own RPC server, whose backend sizes tensors as the CPU does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.engine import processes
from tests.engine.real_headers import headers
from tests.engine.record_memory import header

TOOL = Path(__file__).resolve().parent / "tools" / "sparse_malloc.c"
SPACE_BYTES = 1 << 42
_BUFFER = re.compile(r": +(\S+) (KV |compute )?buffer size = +([0-9.]+) MiB")
_CARD = ("-ngl", "99")
_WIDE = ("-c", "32768", "-b", "2048", "-ub", "2048")
_LONG = ("-c", "32768", "-ub", "512")
EXPERTS = ("-ot", "exps=CPU")
PLAIN = (
    "llama-3.1-8b-q4_k_m", "qwen2.5-72b-q4_k_m", "gemma-3-27b-q4_0", "glm-4-32b-q4_k_m", "command-a-q4_k_m",
    "seed-oss-36b-q4_k_m", "qwen3.5-27b-q4_k_m", "gemma-2-27b-q4_k_m", "gemma-4-31b-q5_k_m", "smollm3-3b-q6_k",
    "phi-3-mini-4k-q4_k_m", "llama-3.2-1b-q4_0",
)  # fmt: skip
MIXED = (
    "qwen3-30b-a3b-q4_k_m", "glm-4.5-air-q4_k_m", "gpt-oss-20b-mxfp4", "gpt-oss-120b-f16", "minimax-m2-q4_k_m",
    "qwen3.5-35b-a3b-q4_k_m", "qwen3-next-80b-a3b-q4_k_m", "ernie-4.5-21b-a3b-q4_k_m", "hunyuan-a13b-q4_k_m",
    "dots.llm1.inst-q4_k_m", "ling-flash-2.0-q4_k_m", "llama-4-scout-q4_k_m", "mixtral-8x7b-q4_k_m",
    "step-3.5-flash-q4_k_m", "gemma-4-26b-a4b-q4_k_m", "mimo-v2-flash-q4_k_m", "minimax-m3-q3_k_m",
)  # fmt: skip
LATENT = (
    "glm-5.1-ud-iq2", "deepseek-v3.1-iq2_xxs", "kimi-k2-q2_k", "deepseek-v2-lite-q8_0", "glm-4.7-flash-q6_k",
    "deepseek-v3.2-q4_k_m", "mistral-small-4-119b-2603-q4_k_m",
)  # fmt: skip


def asked(name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The commands of a model: how many cards (none or one), and the arguments."""
    yield 0, _LONG
    yield 0, _WIDE
    for size in (("-c", "8192", "-ub", "512"), _LONG, _WIDE):
        yield 1, (*_CARD, *size)
    if name in PLAIN:
        yield 1, (*_CARD, *_LONG, "-fa", "off")
        yield 1, (*_CARD, *_LONG, "-ctk", "q8_0", "-ctv", "q8_0")
    else:
        yield 1, (*_CARD, *_LONG, *EXPERTS)
        yield 1, (*_CARD, *_WIDE, *EXPERTS)
    if name in LATENT:
        for mla in ("1", "2", "3"):
            yield 1, (*_CARD, *_LONG, *EXPERTS, "-mla", mla, "-amb", "512")
        yield 1, (*_CARD, *_WIDE, *EXPERTS, "-mla", "3", "-amb", "128")
        yield 1, (*_CARD, *_LONG, *EXPERTS, "-mla", "0")
        yield 1, (*_CARD, *_LONG, *EXPERTS, "-fa", "off")
        yield 1, (*_CARD, "-c", "131072", "-b", "4096", "-ub", "4096", *EXPERTS)
        yield 1, (*_CARD, *_LONG, *EXPERTS, "-ctk", "q8_0")
    elif name in MIXED:
        yield 1, (*_CARD, *_LONG, *EXPERTS, "-no-fmoe")


@contextlib.contextmanager
def card(folder: Path, env: Mapping[str, str], scratch: Path) -> Iterator[str]:
    """The address of an RPC server of its own."""
    port, log = processes.free_port(), scratch / "rpc.log"
    argv: list[str | Path] = [folder / "rpc-server", "-H", processes.LOOPBACK, "-p", str(port)]
    with processes.running(argv, env=env, log=log, address_space_bytes=SPACE_BYTES) as server:
        processes.wait_until(lambda: processes.listens(port), server, log, what="rpc-server", timeout_s=30)
        yield f"{processes.LOOPBACK}:{port}"


def measure(
    folder: Path, path: Path, cards: int, words: Sequence[str], env: Mapping[str, str], scratch: Path
) -> dict[str, dict[str, float]] | str:
    """MiB by place and kind, or the last line of what it says where it does not get so far."""
    log = scratch / "server.log"
    argv: list[str | Path] = [folder / "llama-server", "-m", path, "--port", str(processes.free_port())]
    argv += ["--dry-run", "--no-mmap", "--no-warmup", "-np", "1"]
    with contextlib.ExitStack() as open_now:
        if cards:
            argv += ["--rpc", open_now.enter_context(card(folder, env, scratch))]
        server = open_now.enter_context(
            processes.running([*argv, *words], env=env, log=log, address_space_bytes=SPACE_BYTES)
        )
        with contextlib.suppress(AssertionError):
            processes.wait_until(
                lambda: b"graph splits" in log.read_bytes(), server, log, what="llama-server", timeout_s=60
            )
    said = log.read_text(encoding="utf-8", errors="replace")
    if "graph splits" not in said:
        errors = [line for line in said.splitlines() if "error" in line.lower() or "ASSERT" in line]
        return (errors or said.splitlines() or ["nothing"])[0][:200]
    found: dict[str, dict[str, float]] = {}
    for line in dict.fromkeys(said.splitlines()):  # a server is listed twice, and so is its compute buffer
        if match := _BUFFER.search(line):
            place = "GPU0" if match[1].startswith("RPC") else "Host"
            kind = (match[2] or "model").strip()
            sums = found.setdefault(place, {"model": 0.0, "KV": 0.0, "compute": 0.0})
            sums[kind] = round(sums[kind] + float(match[3]), 2)
    return found


def main() -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(description="Measure the memory of models with ik_llama.cpp.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = args.folder.resolve()
        os.chdir(scratch)  # its programs write logs where they are started
        shared = scratch / "sparse_malloc.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", shared, TOOL, "-ldl"], check=True)  # noqa: S607
        env = processes.engine_env(folder, LD_PRELOAD=str(shared), OMP_NUM_THREADS="1")
        for model, spec in headers():
            if model not in (args.model or (*PLAIN, *MIXED, *LATENT)):
                continue
            path = header(spec, scratch)
            for cards, words in asked(model):
                found = measure(folder, path, cards, words, env, scratch)
                row = {"model": model, "cards": cards, "arguments": words}
                row |= {"refused": found} if isinstance(found, str) else {"mib": found}
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
                if isinstance(found, str) and not cards:
                    break  # it does not know the model
    return 0


if __name__ == "__main__":
    sys.exit(main())
