"""The measurements of `tests/data/conformance`, and what the program says to the same commands."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import DeviceBytes
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.units import MIB
from tests.flag_sets import USED_MIB, Asked
from tests.oracle_cases import BUILD, STAND_IN, machine_with

DATA = Path(__file__).parent / "data" / "conformance"
Set = Literal["real", "tiny"]
SETS: tuple[Set, ...] = ("real", "tiny")
_STORED = ".json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line of real.jsonl or tiny.jsonl: what was asked, and the bytes or the refusal."""

    model: str
    asked: Asked
    places: Mapping[str, DeviceBytes]  # GPU0, …, Host; empty where it was refused
    refused: str = ""

    @property
    def label(self) -> str:
        """A name for messages."""
        cards = ",".join(map(str, self.asked.cards)) or "no"
        return f"{self.model} {self.asked.program} cards {cards}: {' '.join(self.asked.flags)}"


def measured(kind: Set) -> Iterator[Measured]:
    """The recorded measurements, in the order of the file."""
    yield from _rows(kind)


def equal_layers() -> Iterator[Measured]:
    """Those of headers of real size whose equal layers do not all allocate alike."""
    yield from _rows("equal_layers")


def _rows(name: str) -> Iterator[Measured]:
    for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        yield from_row(json.loads(line))


def from_row(row: Mapping[str, Any]) -> Measured:
    """A line as it is stored."""
    return Measured(
        model=row["model"],
        asked=Asked(program=row["program"], cards=tuple(row["cards"]), flags=tuple(row["flags"].split())),
        places={
            place: DeviceBytes(weights_bytes=weights, context_bytes=context, compute_bytes=compute)
            for place, (weights, context, compute) in row.get("bytes", {}).items()
        },
        refused=row.get("refused", ""),
    )


def to_row(found: Measured) -> dict[str, Any]:
    """What from_row reads."""
    row: dict[str, Any] = {
        "model": found.model,
        "program": found.asked.program,
        "cards": list(found.asked.cards),
        "flags": " ".join(found.asked.flags),
    }
    if found.refused:
        return {**row, "refused": found.refused}
    places = {
        place: [part.weights_bytes, part.context_bytes, part.compute_bytes]
        for place, part in found.places.items()
    }
    return {**row, "bytes": places}


def models(kind: Set) -> tuple[str, ...]:
    """The names of the stored headers."""
    return tuple(sorted(path.name.removesuffix(_STORED) for path in (DATA / kind).glob(f"*{_STORED}")))


def store_spec(kind: Set, name: str, spec: ModelSpec) -> None:
    """Writes what memory depends on of a header: keys, and names, types and shapes of the tensors."""
    content = {
        "architecture": spec.architecture,
        "quant": spec.quant,
        "vocab_size": spec.vocab_size,
        "file_bytes": spec.file_bytes,
        "hparams": dict(spec.hparams),
        "tensors": [[tensor.name, tensor.type.name, list(tensor.shape)] for tensor in spec.tensors],
    }
    raw = json.dumps(content, separators=(",", ":")).encode()
    (DATA / kind / f"{name}{_STORED}").write_bytes(gzip.compress(raw, 9, mtime=0))


@cache
def spec(kind: Set, name: str) -> ModelSpec:
    """A stored header."""
    content = json.loads(gzip.decompress((DATA / kind / f"{name}{_STORED}").read_bytes()))
    return ModelSpec(
        name=name,
        architecture=content["architecture"],
        quant=content["quant"],
        tensors=tuple(Tensor(name, by_name(kind), tuple(shape)) for name, kind, shape in content["tensors"]),
        hparams={
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content["hparams"].items()
        },
        vocab_size=content["vocab_size"],
        file_bytes=content["file_bytes"],
    )


@cache
def table(kind: Set, name: str) -> ModelTable:
    """Its table, which remembers compute buffers over the tests of a run."""
    return ModelTable(spec(kind, name))


def reading(asked: Asked, model: ModelSpec) -> CommandReading:
    """What the command means, by the program's own reading."""
    parsed = parse([asked.program, "-m", "model.gguf", *asked.flags], table=FlagTable.load(BUILD))
    cards = tuple((size, USED_MIB) for size in asked.cards)
    return to_settings(parsed, model=model, machine=machine_with(cards))


def predicted(asked: Asked, model: ModelTable) -> dict[str, DeviceBytes]:
    """Each place and what the memory model says of it."""
    devices = [DeviceMemory(free_bytes=(size - USED_MIB) * MIB, kind=STAND_IN) for size in asked.cards]
    made = buffers(model, reading(asked, model.spec).settings, devices)
    return {**{f"GPU{index}": part for index, part in enumerate(made.devices)}, "Host": made.host}
