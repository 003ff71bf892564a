"""Read what the real engine says of its memory: the JSON of membytes, and the log of a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.processes import finished

MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Bytes of one place, under the names of the plan's JSON."""

    weights_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            weights_bytes=self.weights_bytes + other.weights_bytes,
            context_bytes=self.context_bytes + other.context_bytes,
            compute_bytes=self.compute_bytes + other.compute_bytes,
        )


def run_membytes(bin_folder: Path, argv: Sequence[str | Path], env: Mapping[str, str]) -> dict[str, Any]:
    """What membytes says for the arguments of llama-fit-params (`MEMBYTES_MODE=server` in env: llama-server).

    Raises AssertionError where it refuses them.
    """
    done = finished([bin_folder / "membytes", *argv], env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"membytes ended with {done.returncode}: {done.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(lines[-1])
    assert "error" not in answer, f"membytes: {answer}"
    return answer


def places(answer: Mapping[str, Any]) -> dict[str, Sums]:
    """The sums of a membytes answer: GPU0, …, Host, and each buffer type that is neither (CPU_REPACK).

    A stand-in's number is in its name: with `-sm none` the model has only one of them.
    """
    names = {device: re.sub(r"^RPC(\d+).*", r"GPU\1", device) for device in answer["devices"]}
    sums = {place: Sums() for place in (*names.values(), "Host")}
    for buffer in answer["bufts"]:
        place = "Host" if buffer["is_host"] else names.get(buffer["dev"], buffer["buft"])
        found = Sums(
            weights_bytes=buffer["model"], context_bytes=buffer["context"], compute_bytes=buffer["compute"]
        )
        sums[place] = sums.get(place, Sums()) + found
    return sums


def host_sum(sums: Mapping[str, Sums]) -> Sums:
    """Everything that lies in system memory: the host buffers and the repacked copies beside them."""
    return sum((found for place, found in sums.items() if not place.startswith("GPU")), Sums())


_BUFFER = re.compile(r": +(\S+) (model|KV|RS|compute|DSV4 \w+ state) buffer size = +([0-9.]+) MiB")
_KINDS = {"model": "weights_bytes", "KV": "context_bytes", "RS": "context_bytes", "compute": "compute_bytes"}


def log_buffers(log: str) -> Sums:
    """The sums over all buffers that a CPU-only llama-server names in its log at `-lv 4` (to 0.01 MiB).

    The output buffer is left out, as llama.cpp's own breakdown does.
    """
    total = dict.fromkeys(_KINDS.values(), 0)
    for _, kind, size_mib in _BUFFER.findall(log):
        total[_KINDS.get(kind, "context_bytes")] += round(float(size_mib) * MIB)
    return Sums(**total)
