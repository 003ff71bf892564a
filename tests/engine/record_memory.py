"""Measure again what `tests/data/conformance` holds, or measure more.

usage: python -m tests.engine.record_memory real|tiny [--model NAME]... [--out FILE]
       python -m tests.engine.record_memory equal_layers [--out FILE]
       python -m tests.engine.record_memory headers

Needs PLAN_LLAMA_ENGINE_BIN, and beside that folder the one that `test-llama-archs -o archs` makes. `real` and `tiny`
write every measurement of every model (of `--model` only, when given) as one JSON line; without `--out` to standard
output. `equal_layers` asks again what its file holds. `headers` writes the stored headers anew: from the catalog, the
published configurations and the tiny models.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from plan_llama.memory.types import DeviceBytes
from plan_llama.models.spec import load
from plan_llama.models.types import ModelSpec
from plan_llama.models.writer import write_header
from tests.conformance_cases import Measured, Set, equal_layers, models, spec, store_spec, to_row
from tests.engine import processes
from tests.engine.measure import places
from tests.engine.real_headers import headers
from tests.flag_sets import USED_MIB, Asked, flag_sets

MOST_CARDS = 4
GRAPH_SPACE_BYTES = 32 << 30  # some graphs reserve room for a node per token and head, and use little of it
TINY_MIXTURES, REAL_MIXTURES = 13, 15
TINY_CONTEXT = 131072  # what the tiny models are asked for at most


class Meter:
    """Asks membytes for the bytes of one command after another, with the same stand-ins for cards."""

    def __init__(self, bin_folder: Path, endpoints: Sequence[str]) -> None:
        self.bin, self.endpoints = bin_folder, endpoints

    def measure(self, name: str, path: Path, asked: Asked) -> Measured:
        """The bytes of one command, or why it was refused."""
        env = processes.engine_env(self.bin)
        if asked.program == "llama-server":
            env["MEMBYTES_MODE"] = "server"
        used = self.endpoints[: len(asked.cards)]
        argv: list[str | Path] = [self.bin / "membytes"]
        if asked.cards:
            env["SIM_GPU_MIB"] = ",".join(map(str, asked.cards))
            env["SIM_GPU_USED_MIB"] = ",".join([str(USED_MIB)] * len(asked.cards))
            argv += ["--rpc", ",".join(used)]
        argv += ["-m", path, *(_real_names(word, used) for word in asked.flags)]
        limit = GRAPH_SPACE_BYTES + path.stat().st_size
        done = processes.finished(argv, env=env, address_space_bytes=limit)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        answer = json.loads(lines[-1]) if lines else {"error": f"ended with {done.returncode}"}
        if "error" in answer:
            return Measured(model=name, asked=asked, places={}, refused=_why(answer, done.stderr))
        found = {
            place: DeviceBytes(
                weights_bytes=part.weights_bytes,
                context_bytes=part.context_bytes,
                compute_bytes=part.compute_bytes,
            )
            for place, part in places(answer).items()
        }
        return Measured(model=name, asked=asked, places=found)


def _real_names(word: str, endpoints: Sequence[str]) -> str:
    """A card's buffer as the stand-in calls it."""
    for index, endpoint in enumerate(endpoints):
        word = word.replace(f"=CUDA{index}", f"=RPC0[{endpoint}]")
    return word


def _why(answer: Mapping[str, object], stderr: str) -> str:
    log = answer.get("log")
    lines = [*(log if isinstance(log, list) else ()), *stderr.splitlines()]
    telling = (
        "requires",
        "must",
        "not support",
        "unsupported",
        "GGML_ASSERT",
        "invalid",
        "failed",
        "divisible",
    )
    found = next((line for line in lines if any(word in line for word in telling)), "")
    found = re.sub(r"\S*/(?=[\w.-]+\.(cpp|c|h|gguf))", "", found).strip()  # without folders of this machine
    return f"{answer['error']}: {found}"[:240] if found else str(answer["error"])


@contextlib.contextmanager
def meter(bin_folder: Path, scratch: Path) -> Iterator[Meter]:
    """A Meter whose stand-ins run until the end of the block."""
    with contextlib.ExitStack() as cards:
        endpoints = []
        for index in range(MOST_CARDS):
            port, log = processes.free_port(), scratch / f"rpc-{index}.log"
            argv: list[str | Path] = [
                bin_folder / "ggml-rpc-server",
                "-H",
                processes.LOOPBACK,
                "-p",
                str(port),
            ]
            card = cards.enter_context(processes.running(argv, env=processes.engine_env(bin_folder), log=log))

            def up(port: int = port) -> bool:
                return processes.listens(port)

            processes.wait_until(up, card, log, what="ggml-rpc-server", timeout_s=20)
            endpoints.append(f"{processes.LOOPBACK}:{port}")
        yield Meter(bin_folder, endpoints)


def wanted(name: str, model: ModelSpec, *, real: bool) -> tuple[Asked, ...]:
    """What is measured of a model."""
    return flag_sets(
        name,
        blocks=model.int_param("block_count"),
        context=model.context_train if real else TINY_CONTEXT,
        experts=any("_exps." in tensor.name for tensor in model.tensors),
        mixtures=REAL_MIXTURES if real else TINY_MIXTURES,
    )


def record(found: Meter, kind: Set, names: Sequence[str], archs: Path, scratch: Path) -> Iterator[Measured]:
    """All measurements of the models: tiny ones from the folder `archs`, real ones of the stored headers."""
    for name in names:
        path = header(spec(kind, name), scratch) if kind == "real" else archs / f"{name}.gguf"
        for asked in wanted(name, spec(kind, name), real=kind == "real"):
            yield found.measure(name, path, asked)


def _measured_again(found: Meter, asked: Sequence[Measured], scratch: Path) -> Iterator[Measured]:
    for case in asked:
        yield found.measure(case.model, header(spec("real", case.model), scratch), case.asked)


def header(model: ModelSpec, folder: Path) -> Path:
    """The model as a file without data. It states the number of tokens and lists none: it loads seven times as fast."""
    path = folder / "model.gguf"
    counted = {**model.hparams, "vocab_size": model.vocab_size}
    write_header(replace(model, vocab_size=0, hparams=counted), path, force=True)
    return path


def store_headers(archs: Path, scratch: Path) -> None:
    """Every header as it is read back from the file that is written of it."""
    for path in archs.glob("*.gguf"):
        store_spec("tiny", path.stem, load(path))
    for name, made in headers():
        path = scratch / f"{name}.gguf"
        write_header(made, path, force=True)
        store_spec("real", name, load(path))
        path.unlink()


def main() -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(description="Measure the memory of models with llama.cpp.")
    parser.add_argument("what", choices=("real", "tiny", "equal_layers", "headers"))
    parser.add_argument("--model", action="append")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bin_folder = Path(os.environ["PLAN_LLAMA_ENGINE_BIN"]).resolve()
    archs = bin_folder.parent / "archs"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        if args.what == "headers":
            store_headers(archs, scratch)
            return 0
        again = tuple(equal_layers())  # before the file is opened for writing
        out = stack.enter_context(args.out.open("w", encoding="utf-8")) if args.out else sys.stdout
        found = stack.enter_context(meter(bin_folder, scratch))
        if args.what == "equal_layers":
            cases = _measured_again(found, again, scratch)
        else:
            cases = record(found, args.what, args.model or models(args.what), archs, scratch)
        for case in cases:
            out.write(json.dumps(to_row(case), separators=(",", ":")) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
