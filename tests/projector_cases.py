"""Projectors with the shapes of the catalog, and what llama.cpp takes for them (tests/data/projectors)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plan_llama.memory.projector import Projector
from plan_llama.memory.scheduler import CPU_KIND, BackendKind
from plan_llama.models import catalog_models, projectors
from plan_llama.models.ggml_types import by_name
from plan_llama.models.images import Image
from plan_llama.models.tables.towers import tower_tensors
from plan_llama.models.types import ModelSpec, Tensor

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


# Towers of models that the catalog does not have, with the shapes of their config.json (MiniMax-M3's vision tower: of
# the sizes that its converter asserts, heads of 80).
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "InternVL3-8B": (
        "internvl",
        {"image_size": 448, "embedding_length": 1024, "feed_forward_length": 4096, "block_count": 24}
        | {"attention.head_count": 16, "projection_dim": 3584, "projector.scale_factor": 2},
    ),
    "Kimi-K2.5": (
        "kimik25",
        {"image_size": 896, "embedding_length": 1152, "feed_forward_length": 4304, "block_count": 27}
        | {"attention.head_count": 16, "projection_dim": 7168, "projector.scale_factor": 2}
        | {"image_min_pixels": 8 * 14**2, "image_max_pixels": 16384 * 14**2},
    ),
    "MiniMax-M3": (
        "minimax_m3",
        {"image_size": 672, "embedding_length": 1280, "feed_forward_length": 5120, "block_count": 32}
        | {"attention.head_count": 16, "projection_dim": 6144, "spatial_merge_size": 2},
    ),
}


def _other(model: str, output: str) -> ModelSpec:
    kind, keys = _OTHERS[model]
    keys = {"patch_size": 14, "attention.layer_norm_epsilon": 1e-6, **keys}
    embd, ffn, out = (keys[key] for key in ("embedding_length", "feed_forward_length", "projection_dim"))
    merged = 4 * embd
    made: dict[str, tuple[int, ...]] = {"v.patch_embd.weight": (14, 14, 3, embd)}
    for il in range(keys["block_count"]):
        p = f"v.blk.{il}"
        parts: dict[str, tuple[int, ...]] = {f"{p}.attn_{x}": (embd, embd) for x in ("q", "k", "v", "out")}
        if kind == "kimik25":
            parts = {f"{p}.attn_qkv": (embd, 3 * embd), f"{p}.attn_out": (embd, embd)}
        parts |= {f"{p}.ffn_up": (embd, ffn), f"{p}.ffn_down": (ffn, embd)}
        for name, shape in parts.items():
            made |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
        for name in ("ln1", "ln2"):
            made |= {f"{p}.{name}.weight": (embd,), f"{p}.{name}.bias": (embd,)}
        if kind == "internvl":
            made |= {f"{p}.ls1.weight": (embd,), f"{p}.ls2.weight": (embd,)}
    linear: dict[str, tuple[int, ...]] = {}
    if kind == "internvl":
        made |= {
            "v.patch_embd.bias": (embd,),
            "v.class_embd": (embd,),
            "v.position_embd.weight": (embd, 1025),
        }
        made |= {"mm.model.mlp.0.weight": (merged,), "mm.model.mlp.0.bias": (merged,)}
        linear = {"mm.model.mlp.1": (merged, out), "mm.model.mlp.3": (out, out)}
    elif kind == "kimik25":
        made |= {"v.patch_embd.bias": (embd,), "v.position_embd.weight": (embd, 64, 64)}
        made |= {"v.post_ln.weight": (embd,), "v.post_ln.bias": (embd,)}
        made |= {"mm.input_norm.weight": (embd,), "mm.input_norm.bias": (embd,)}
        linear = {"mm.1": (merged, merged), "mm.2": (merged, out)}
    else:
        made |= {
            "v.patch_embd.weight.1": (14, 14, 3, embd),
            "v.pre_ln.weight": (embd,),
            "v.pre_ln.bias": (embd,),
        }
        linear = {"mm.1": (embd, out), "mm.2": (out, out)}
        linear |= {"mm.merger.fc1": (4 * out, out), "mm.merger.fc2": (out, out)}
    for name, shape in linear.items():
        made |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    plain = by_name(output)
    tensors = tuple(
        Tensor(name, by_name("f32") if len(shape) < 2 or "position" in name else plain, shape)
        for name, shape in made.items()
    )
    hparams = {"has_vision_encoder": True, "projector_type": kind}
    hparams |= {f"vision.{key}": value for key, value in keys.items()}
    hparams |= {"vision.image_mean": (0.5, 0.5, 0.5), "vision.image_std": (0.5, 0.5, 0.5)}
    return ModelSpec(
        name=model,
        architecture="clip",
        quant=output,
        tensors=tensors,
        hparams=hparams,
        vocab_size=0,
        file_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def tower(model: str, output: str) -> ModelSpec:
    """The projector of a catalog model, or of one of `_OTHERS`, as the converter writes it with `--outtype`."""
    if model in _OTHERS:
        return _other(model, output)
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
