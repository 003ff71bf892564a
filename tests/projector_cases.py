"""Projectors with the shapes of the catalog, and what llama.cpp takes for them (tests/data/projectors)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_llama.memory.projector import Projector
from plan_llama.memory.scheduler import CPU_KIND, BackendKind
from plan_llama.models import catalog_models, projectors
from plan_llama.models.images import Image
from plan_llama.models.tables.towers import tower_tensors
from plan_llama.models.types import ModelSpec

RECORDED = Path(__file__).parent / "data" / "projectors" / "cases.jsonl"

# The RPC device that stands in for a CUDA card sizes tensors as CUDA does and aligns them as its server's CPU does.
SIMULATED = BackendKind(alignment=32, cuda_sizes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of tests/engine/tools/mmprojbytes.cpp; `answer` is what it printed."""

    model: str
    output: str
    gpu: bool
    flash_attn: bool
    max_tokens: int | None
    images: tuple[Image, ...]
    answer: dict[str, Any]

    @property
    def id(self) -> str:
        """A name for pytest."""
        where = "gpu" if self.gpu else "cpu"
        attention = "" if self.flash_attn else "-fa-off"
        most = f"-max-{self.max_tokens}" if self.max_tokens else ""
        return f"{self.model}-{self.output}-{where}{attention}{most}"

    @property
    def backend(self) -> BackendKind:
        """What the projector was loaded to."""
        return SIMULATED if self.gpu else CPU_KIND

    def device_and_host(self, found: dict[str, int]) -> tuple[int, int]:
        """Bytes on the projector's own device, and beside it on the host."""
        return (found.get("RPC0", 0), found.get("CPU", 0)) if self.gpu else (found["CPU"], 0)


def tower(model: str, output: str) -> ModelSpec:
    """The projector of a catalog model as the converter writes it with `--outtype`."""
    from dataclasses import replace

    known = catalog_models.model(model)
    spec = projectors.of_known(known, known.quants[0])
    assert spec is not None
    assert known.projector is not None
    assert known.projector.kind is not None
    tensors = tower_tensors(known.projector.kind, known.projector.hparams, output)
    assert tensors is not None
    return replace(spec, tensors=tensors, quant=output, file_bytes=sum(t.nbytes for t in tensors))


def projector(case: Case) -> Projector:
    """The projector that a case is about."""
    return Projector(tower(case.model, case.output))


def recorded() -> Iterator[Case]:
    """Every recorded case."""
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        yield from_json(json.loads(line))


def from_json(item: dict[str, Any]) -> Case:
    """A case as it is recorded."""
    images = tuple(Image(size[0], size[1], count) for size, count in item["images"])
    return Case(**{**item, "images": images})


def to_json(case: Case) -> dict[str, Any]:
    """The reverse of from_json."""
    return {
        "model": case.model,
        "output": case.output,
        "gpu": case.gpu,
        "flash_attn": case.flash_attn,
        "max_tokens": case.max_tokens,
        "images": [[[image.width, image.height], image.count] for image in case.images],
        "answer": case.answer,
    }
