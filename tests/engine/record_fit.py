"""Ask llama.cpp's own `--fit` again what `tests/data/fit/choices.jsonl` holds.

usage: python -m tests.engine.record_fit [--model NAME]... [--out FILE]

Needs PLAN_LLAMA_ENGINE_BIN. Writes one JSON line per model and machine; without `--out` to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import fit_cases
from tests.engine import processes
from tests.engine.record_memory import header

_SPACE_BYTES = 32 << 30  # of addresses: the file's mapping comes on top


@contextlib.contextmanager
def stand_ins(bin_folder: Path, scratch: Path, count: int) -> Iterator[list[str]]:
    """Endpoints of so many devices that stand in for cards, until the end of the block."""
    with contextlib.ExitStack() as cards:
        endpoints = []
        for index in range(count):
            port, log = processes.free_port(), scratch / f"rpc-{index}.log"
            argv: list[str | Path] = [bin_folder / "ggml-rpc-server", "-H", processes.LOOPBACK]
            env = processes.engine_env(bin_folder)
            card = cards.enter_context(processes.running([*argv, "-p", str(port)], env=env, log=log))

            def up(port: int = port) -> bool:
                return processes.listens(port)

            processes.wait_until(up, card, log, what="ggml-rpc-server", timeout_s=20)
            endpoints.append(f"{processes.LOOPBACK}:{port}")
        yield endpoints


def choice(bin_folder: Path, path: Path, mib: Sequence[int], endpoints: Sequence[str]) -> str:
    """The arguments that `--fit` prints for cards of these sizes, with CUDA0 for the first one's buffer."""
    sizes, used = ",".join(map(str, mib)), ",".join([str(fit_cases.USED_MIB)] * len(mib))
    env = processes.engine_env(bin_folder, SIM_GPU_MIB=sizes, SIM_GPU_USED_MIB=used)
    argv: list[str | Path] = [bin_folder / "llama-fit-params", "-m", path, *fit_cases.FLAGS]
    argv += ["--rpc", ",".join(endpoints[: len(mib)])]
    limit = _SPACE_BYTES + path.stat().st_size
    done = processes.finished(argv, env=env, address_space_bytes=limit, timeout_s=300)
    printed = [line for line in done.stdout.splitlines() if line.startswith("-c ")]
    assert printed, f"llama-fit-params ended with {done.returncode}: {done.stderr[-2000:]}"
    names = {endpoint: index for index, endpoint in enumerate(endpoints)}
    return re.sub(r"RPC0\[([^\]]*)\]", lambda found: f"CUDA{names[found[1]]}", printed[-1])


def main() -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(description="Ask llama.cpp's --fit for its placements.")
    parser.add_argument("--model", action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bin_folder = Path(os.environ["PLAN_LLAMA_ENGINE_BIN"]).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = stack.enter_context(args.out.open("w", encoding="utf-8")) if args.out else sys.stdout
        most = max(len(cards.mib) for cards in fit_cases.MACHINES.values())
        endpoints = stack.enter_context(stand_ins(bin_folder, Path(folder), most))
        for model in args.model or fit_cases.MODELS:
            path = header(fit_cases.spec(model), Path(folder))
            for name, cards in fit_cases.MACHINES.items():
                row = {"model": model, "machine": name, "cards_mib": cards.mib, "flags": fit_cases.FLAGS}
                row["chosen"] = choice(bin_folder, path, cards.mib, endpoints)
                out.write(json.dumps(row, separators=(",", ":")) + "\n")
                out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
