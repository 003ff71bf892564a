"""The tensors of a multimodal projector file (mmproj), from the shapes of its vision tower.

Names and shapes as llama.cpp's converter writes them (conversion/*.py, classes derived from MmprojModel) and as
clip_model_loader::load_tensors (tools/mtmd/clip.cpp) asks for them, b11434. `hparams` are the header's keys without
their prefix `clip.`; the projector's type decides the builder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from plan_llama.models.ggml_types import by_name
from plan_llama.models.tables.pieces import Named, Shapes
from plan_llama.models.types import Tensor

OUTPUT_TYPES = ("F16", "BF16", "Q8_0", "F32")
_KEPT_IN_F16 = "mm.input_projection.weight"  # Gemma3VisionModel.tensor_force_quant


class _Tower:
    """Shapes of a tower under the names that the builders use."""

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        self.h = Shapes(hparams, 0)
        self.embd = self.h["vision.embedding_length"]
        self.ffn = self.h["vision.feed_forward_length"]
        self.patch = self.h["vision.patch_size"]
        self.blocks = self.h["vision.block_count"]
        self.out = self.h["vision.projection_dim"]

    def merged(self, key: str, default: int) -> int:
        """Patches that become one token, along one side."""
        return self.h.get(key) or default

    def patches(self) -> int:
        """Positions that are learned: the patches of a square image of the size in the header."""
        return (self.h["vision.image_size"] // self.h.divisor("vision.patch_size")) ** 2

    def pixels(self) -> tuple[int, int, int, int]:
        """The kernel that turns pixels into patches."""
        return self.patch, self.patch, 3, self.embd


def _linear(name: str, rows: int, out: int, *, bias: bool = True) -> Iterator[Named]:
    yield f"{name}.weight", (rows, out)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, size: int, *, bias: bool = True) -> Iterator[Named]:
    yield f"{name}.weight", (size,)
    if bias:
        yield f"{name}.bias", (size,)


def _blocks(
    t: _Tower,
    *,
    bias: bool = True,
    norm_bias: bool = True,
    fused: bool = False,
    gated: bool = False,
    ffn: int | None = None,
    ffn_bias: bool = True,
) -> Iterator[Named]:
    """The blocks of a vision transformer: two norms, attention, feed-forward."""
    size = ffn or t.ffn
    for il in range(t.blocks):
        p = f"v.blk.{il}"
        if fused:
            yield from _linear(f"{p}.attn_qkv", t.embd, 3 * t.embd, bias=bias)
        else:
            for part in ("q", "k", "v"):
                yield from _linear(f"{p}.attn_{part}", t.embd, t.embd, bias=bias)
        yield from _linear(f"{p}.attn_out", t.embd, t.embd, bias=bias)
        yield from _norm(f"{p}.ln1", t.embd, bias=norm_bias)
        yield from _norm(f"{p}.ln2", t.embd, bias=norm_bias)
        if gated:
            yield from _linear(f"{p}.ffn_gate", t.embd, size, bias=ffn_bias)
        yield from _linear(f"{p}.ffn_up", t.embd, size, bias=ffn_bias)
        yield from _linear(f"{p}.ffn_down", size, t.embd, bias=ffn_bias)


def _gemma3(t: _Tower) -> Iterator[Named]:
    yield "v.patch_embd.weight", t.pixels()
    yield "v.patch_embd.bias", (t.embd,)
    yield "v.position_embd.weight", (t.embd, t.patches())
    yield from _blocks(t)
    yield from _norm("v.post_ln", t.embd)
    yield "mm.input_projection.weight", (t.out, t.embd)
    yield "mm.soft_emb_norm.weight", (t.embd,)


def _two_frames(t: _Tower) -> Iterator[Named]:
    """A kernel per frame of a pair: the converter splits the convolution over time."""
    yield "v.patch_embd.weight", t.pixels()
    yield "v.patch_embd.weight.1", t.pixels()


def _qwen25vl(t: _Tower) -> Iterator[Named]:
    merged = 4 * t.embd
    yield from _two_frames(t)
    yield from _blocks(t, norm_bias=False, gated=True)
    yield from _norm("v.post_ln", t.embd, bias=False)
    yield from _linear("mm.0", merged, merged)
    yield from _linear("mm.2", merged, t.out)


def _qwen3vl(t: _Tower) -> Iterator[Named]:
    merged = t.merged("vision.spatial_merge_size", 2) ** 2 * t.embd
    given = t.h.hparams.get("vision.is_deepstack_layers")
    levels = given if isinstance(given, tuple) else ()
    yield from _two_frames(t)
    yield "v.patch_embd.bias", (t.embd,)
    yield "v.position_embd.weight", (t.embd, t.patches())
    yield from _blocks(t, fused=True)
    yield from _norm("v.post_ln", t.embd)
    yield from _linear("mm.0", merged, merged)
    yield from _linear("mm.2", merged, t.out)
    for il, deep in enumerate(levels):
        if deep:
            yield from _norm(f"v.deepstack.{il}.norm", merged)
            yield from _linear(f"v.deepstack.{il}.fc1", merged, merged)
            yield from _linear(f"v.deepstack.{il}.fc2", merged, t.out)


def _glm4v(t: _Tower) -> Iterator[Named]:
    merge = t.merged("vision.spatial_merge_size", 2)
    yield from _two_frames(t)
    yield "v.patch_embd.bias", (t.embd,)
    yield from _norm("v.norm_embd", t.embd, bias=False)
    yield "v.position_embd.weight", (t.embd, t.patches())
    # the blocks' feed-forward is as wide as the text model; the header's length is that of the projector
    yield from _blocks(t, bias=False, norm_bias=False, fused=True, gated=True, ffn=t.out, ffn_bias=False)
    yield from _norm("v.post_ln", t.embd, bias=False)
    yield "mm.patch_merger.weight", (merge, merge, t.embd, t.out)
    yield "mm.patch_merger.bias", (t.out,)
    yield from _linear("mm.model.fc", t.out, t.out, bias=False)
    yield from _norm("mm.post_norm", t.out)
    yield from _linear("mm.gate", t.out, t.ffn, bias=False)
    yield from _linear("mm.up", t.out, t.ffn, bias=False)
    yield from _linear("mm.down", t.ffn, t.out, bias=False)


def _kimivl(t: _Tower) -> Iterator[Named]:
    merged = t.merged("vision.projector.scale_factor", 2) ** 2 * t.embd
    yield "v.patch_embd.weight", t.pixels()
    yield "v.patch_embd.bias", (t.embd,)
    yield "v.position_embd.weight", (t.embd, t.patches())
    yield from _blocks(t)
    yield from _norm("v.post_ln", t.embd)
    yield from _norm("mm.input_norm", t.embd)
    yield from _linear("mm.1", merged, merged)
    yield from _linear("mm.2", merged, t.out)


def _pixtral(t: _Tower) -> Iterator[Named]:
    merge = t.merged("vision.spatial_merge_size", 1)
    yield "v.patch_embd.weight", t.pixels()
    yield from _norm("v.pre_ln", t.embd, bias=False)
    yield from _blocks(t, bias=False, norm_bias=False, gated=True, ffn_bias=False)
    if merge > 1:
        yield from _norm("mm.input_norm", t.embd, bias=False)
        yield "mm.patch_merger.weight", (merge * merge * t.embd, t.embd)
    yield from _linear("mm.1", t.embd, t.out, bias=False)
    yield from _linear("mm.2", t.out, t.out, bias=False)
    yield "v.token_embd.img_break", (t.out,)


def _llama4(t: _Tower) -> Iterator[Named]:
    merged = t.merged("vision.projector.scale_factor", 2) ** 2 * t.embd
    inner = t.h["tensors.projector_width"]
    yield "v.class_embd", (t.embd,)
    yield "v.patch_embd.weight", (3 * t.patch * t.patch, t.embd)
    yield "v.position_embd.weight", (t.embd, t.patches() + 1)
    yield from _norm("v.pre_ln", t.embd)
    yield from _blocks(t)
    yield from _norm("v.post_ln", t.embd)
    yield "mm.model.mlp.1.weight", (merged, inner)
    yield "mm.model.mlp.2.weight", (inner, inner)
    yield "mm.model.fc.weight", (inner, t.out)


def _gemma4v(t: _Tower) -> Iterator[Named]:
    head = t.embd // t.h.divisor("vision.attention.head_count")
    yield "v.patch_embd.weight", t.pixels()
    yield "v.position_embd.weight", (t.embd, t.h["tensors.positions"], 2)
    for name, shape in _blocks(t, bias=False, norm_bias=False, gated=True, ffn_bias=False):
        yield name, shape
        if name.endswith(".attn_out.weight"):
            block = name.removesuffix(".attn_out.weight")
            yield f"{block}.attn_q_norm.weight", (head,)
            yield f"{block}.attn_k_norm.weight", (head,)
            yield f"{block}.attn_post_norm.weight", (t.embd,)
            yield f"{block}.ffn_post_norm.weight", (t.embd,)
    yield "v.std_bias", (t.embd,)
    yield "v.std_scale", (t.embd,)
    yield "mm.input_projection.weight", (t.embd, t.out)


BUILDERS: Mapping[str, Callable[[_Tower], Iterator[Named]]] = {
    "gemma3": _gemma3,
    "gemma4v": _gemma4v,
    "glm4v": _glm4v,
    "kimivl": _kimivl,
    "llama4": _llama4,
    "pixtral": _pixtral,
    "qwen2.5vl_merger": _qwen25vl,
    "qwen3vl_merger": _qwen3vl,
}


def tower_tensors(kind: str, hparams: Mapping[str, Any], output: str) -> tuple[Tensor, ...] | None:
    """The tensors of a projector file with the types that the converter writes for `--outtype`.

    None for a type of projector that has no table here. Raises ProfileError where a shape is missing.
    """
    build = BUILDERS.get(kind)
    return None if build is None else tuple(_typed(kind, build(_Tower(hparams)), output))


def _typed(kind: str, shapes: Iterable[Named], output: str) -> Iterator[Tensor]:
    """MmprojModel.tensor_force_quant and prepare_tensors (conversion/base.py)."""
    f32, f16, plain = by_name("f32"), by_name("f16"), by_name(output)
    for name, shape in shapes:
        if len(shape) < 2 or name == "v.position_embd.weight":
            chosen = f32
        elif ".patch_embd.weight" in name or ".patch_merger.weight" in name:
            chosen = f16 if output == "F16" else f32
        elif kind == "gemma3" and name == _KEPT_IN_F16:
            chosen = f16
        else:
            # rows that make no whole blocks stay in f16
            chosen = plain if shape[0] % plain.block_elements == 0 else f16
        yield Tensor(name, chosen, shape)
