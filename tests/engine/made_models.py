"""Headers of real size for architectures that neither the catalog nor a published configuration here has.

Shapes are those of the named models; the tensors are those that load_arch_tensors of src/models/*.cpp asks for, b11434.
Matrices are q8_0, what llama-quantize leaves alone f32 or f16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from plan_llama.models.catalog_models import model as catalog_model
from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor
from plan_llama.models.unpublished import of_known

_Shapes = dict[str, tuple[int, ...]]


def _spec(
    name: str,
    architecture: str,
    shapes: Mapping[str, tuple[int, ...]],
    hparams: Mapping[str, Any],
    vocabulary: int,
) -> ModelSpec:
    kinds = {1: "f32", 2: "q8_0", 3: "q8_0"}
    tensors = tuple(
        Tensor(name, by_name("f16" if "rel_b" in name or shape[0] % 32 else kinds[len(shape)]), shape)
        for name, shape in shapes.items()
    )
    return ModelSpec(
        name=name,
        architecture=architecture,
        quant="Q8_0",
        tensors=tensors,
        hparams=dict(hparams),
        vocab_size=vocabulary,
        file_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _t5(
    name: str,
    *,
    layers: int,
    width: int,
    heads: int,
    ffn: int,
    gated: bool,
    tied: bool = False,
    decoder: bool = True,
) -> ModelSpec:
    head, vocabulary = 64, 32128
    inner = heads * head
    shapes: _Shapes = {"token_embd.weight": (width, vocabulary), "enc.output_norm.weight": (width,)}
    if decoder:
        shapes["dec.output_norm.weight"] = (width,)
    if not tied:
        shapes["output.weight"] = (width, vocabulary)
    for il in range(layers):
        for stack in ("enc", "dec") if decoder else ("enc",):
            prefix = f"{stack}.blk.{il}"
            if not il:
                shapes[f"{prefix}.attn_rel_b.weight"] = (heads, 32)
            for half in ("attn", "cross_attn") if stack == "dec" else ("attn",):
                shapes[f"{prefix}.{half}_norm.weight"] = (width,)
                shapes |= {f"{prefix}.{half}_{part}.weight": (width, inner) for part in "qkv"}
                shapes[f"{prefix}.{half}_o.weight"] = (inner, width)
            shapes[f"{prefix}.ffn_norm.weight"] = (width,)
            for part in ("gate", "up") if gated else ("up",):
                shapes[f"{prefix}.ffn_{part}.weight"] = (width, ffn)
            shapes[f"{prefix}.ffn_down.weight"] = (ffn, width)
    hparams = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.relative_buckets_count": 32,
        **({"decoder_start_token_id": 0} if decoder else {}),
    }
    return _spec(name, "t5" if decoder else "t5encoder", shapes, hparams, vocabulary)


def _grovemoe() -> ModelSpec:
    """GroveMoE-Inst: Qwen3-30B-A3B, and 64 small experts in every layer."""
    base = of_known(catalog_model("qwen3-30b-a3b"), "Q4_K_M")
    tensors: list[Tensor] = []
    for tensor in base.tensors:
        tensors.append(tensor)
        if tensor.name.endswith("ffn_up_exps.weight"):
            prefix = tensor.name.removesuffix("ffn_up_exps.weight")
            for part, shape in (
                ("gate", (2048, 128, 64)),
                ("up", (2048, 128, 64)),
                ("down", (128, 2048, 64)),
            ):
                kind = by_name("q4_K" if part != "down" else "q5_1")
                tensors.append(Tensor(f"{prefix}ffn_{part}_chexps.weight", kind, shape))
    hparams = {
        **base.hparams,
        "expert_chunk_feed_forward_length": 128,
        "expert_group_scale": 0.05,
        "experts_per_group": 2,
    }
    return replace(base, architecture="grovemoe", tensors=tuple(tensors), hparams=hparams)


def _granite_switch() -> ModelSpec:
    """Granite 3.3 8B with eight adapters of rank 32 in its file."""
    width, heads, kv_heads, head, ffn, vocabulary, rank, slots = 4096, 32, 8, 128, 12800, 49159, 32, 9
    q, kv = heads * head, kv_heads * head
    shapes: _Shapes = {"token_embd.weight": (width, vocabulary), "output_norm.weight": (width,)}
    adapted = {
        "attn_q": (width, q),
        "attn_k": (width, kv),
        "attn_v": (width, kv),
        "attn_output": (q, width),
        "ffn_gate": (width, ffn),
        "ffn_up": (width, ffn),
        "ffn_down": (ffn, width),
    }
    for il in range(40):
        prefix = f"blk.{il}"
        shapes |= {f"{prefix}.{name}_norm.weight": (width,) for name in ("attn", "ffn")}
        shapes[f"{prefix}.attn_qkv.weight"] = (width, q + 2 * kv)
        for name, (into, out) in adapted.items():
            if name not in ("attn_q", "attn_k", "attn_v"):
                shapes[f"{prefix}.{name}.weight"] = (into, out)
            shapes[f"{prefix}.{name}.lora_a"] = (into, rank, slots)
            shapes[f"{prefix}.{name}.lora_b"] = (rank, out, slots)
    hparams = {
        "block_count": 40,
        "context_length": 131072,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.scale": 0.0078125,
        "rope.dimension_count": head,
        "rope.freq_base": 1e7,
        "logit_scale": 16.0,
        "residual_scale": 0.22,
        "embedding_scale": 12.0,
        "adapters.count": slots - 1,
        "adapters.lora_rank": rank,
        "adapters.token_ids_activate": tuple(range(100, 100 + slots - 1)),
        "adapters.token_ids_substitute": tuple(range(1, slots)),
    }
    return _spec("granite-3.3-8b-switch", "graniteswitch", shapes, hparams, vocabulary)


def _wavtokenizer() -> ModelSpec:
    """WavTokenizer-large-speech-75token's decoder, unquantised as it is published."""
    width, inner, ffn, spectrum, vocabulary, layers = 512, 768, 2304, 1282, 4096, 12
    plain = (1, inner)
    shapes: _Shapes = {
        "token_embd.weight": (width, vocabulary),
        "conv1d.weight": (7, width, inner),
        "conv1d.bias": plain,
        "token_embd_norm.weight": (inner,),
        "token_embd_norm.bias": (inner,),
        "output_norm.weight": (inner,),
        "output_norm.bias": (inner,),
        "output.weight": (inner, spectrum),
        "output.bias": (spectrum,),
    }
    for il in range(6):
        parts: _Shapes = {}
        if il == 2:
            parts = {f"attn_{name}": (1, inner, inner) for name in ("q", "k", "v", "output")}
        elif il < 5:
            parts = {f"conv{half}": (3, inner, inner) for half in "12"}
        norms = ("attn_norm",) if il in (2, 5) else ("norm1", "norm2")
        for name, shape in {**parts, **dict.fromkeys(norms, plain)}.items():
            shapes |= {f"posnet.{il}.{name}.weight": shape, f"posnet.{il}.{name}.bias": plain}
    for il in range(layers):
        prefix = f"convnext.{il}"
        shapes |= {f"{prefix}.dw.weight": (7, 1, inner), f"{prefix}.dw.bias": plain}
        shapes |= {f"{prefix}.norm.weight": (inner,), f"{prefix}.norm.bias": (inner,)}
        shapes |= {f"{prefix}.pw1.weight": (inner, ffn), f"{prefix}.pw1.bias": (ffn,)}
        shapes |= {f"{prefix}.pw2.weight": (ffn, inner), f"{prefix}.pw2.bias": (inner,)}
        shapes[f"{prefix}.gamma.weight"] = (inner,)
    hparams = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": spectrum,
        "features_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": 1,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.group_norm_epsilon": 1e-6,
        "attention.group_norm_groups": 32,
        "attention.causal": False,
        "posnet.embedding_length": inner,
        "posnet.block_count": 6,
        "convnext.embedding_length": inner,
        "convnext.block_count": layers,
    }
    small = (".bias", "norm.weight", "norm1.weight", "norm2.weight", "gamma.weight")
    made_of = _spec("wavtokenizer-large-75", "wavtokenizer-dec", shapes, hparams, vocabulary)
    return replace(
        made_of,
        quant="F16",
        tensors=tuple(
            replace(tensor, type=by_name("f32" if tensor.name.endswith(small) else "f16"))
            for tensor in made_of.tensors
        ),
    )


def _clef() -> ModelSpec:
    """Qwen3.5-27B with a head that scores options, of eight layers."""
    base = of_known(catalog_model("qwen3.5-27b"), "Q4_K_M")
    width, inner, ffn = base.int_param("embedding_length"), 1024, 4096
    routing = joint = 4
    shapes: _Shapes = {"decision.scales": (3,), "token_types.weight": (inner, 3)}

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def product(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (into, out), (out,)

    for il in range(routing + joint):
        prefix = f"dec.blk.{il}"
        norm(f"{prefix}.cross_attn_norm", inner)
        norm(f"{prefix}.ffn_norm", inner)
        norm(f"{prefix}.{'cross_attn_norm_kv' if il < routing else 'attn_norm'}", inner)
        for half in ("cross_attn",) if il < routing else ("attn", "cross_attn"):
            for part in "qkvo":
                product(f"{prefix}.{half}_{part}", inner, inner)
        product(f"{prefix}.ffn_up", inner, ffn)
        product(f"{prefix}.ffn_down", ffn, inner)
    norm("decision.hidden_norm", width)
    for name in ("option_summary_norm", "field_norm", "option_norm"):
        norm(f"decision.{name}", inner)
    for name in ("memory", "question", "option_question", "global", "option_context", "option_lexical"):
        shapes[f"decision.proj_{name}.weight"] = (width, inner)
    product("decision.scorer", 4 * inner, inner)
    product("decision.scorer_out", inner, 1)
    head = _spec("head", "clef", shapes, {}, 0).tensors
    hparams = {
        **base.hparams,
        "attention.layer_norm_epsilon": 1e-5,
        "decision.routing_block_count": routing,
        "decision.block_count": joint,
        "decision.head_count": 16,
    }
    return replace(base, architecture="clef", tensors=(*base.tensors, *head), hparams=hparams)


def made() -> Iterator[tuple[str, ModelSpec]]:
    """Every header by the name that its measurements are stored under."""
    yield "clef-27b-q4_k_m", _clef()
    yield "granite-3.3-8b-switch-q8_0", _granite_switch()
    yield "grovemoe-inst-q4_k_m", _grovemoe()
    yield "t5-base-q8_0", _t5("t5-base", layers=12, width=768, heads=12, ffn=3072, gated=False, tied=True)
    yield "flan-t5-xl-q8_0", _t5("flan-t5-xl", layers=24, width=2048, heads=32, ffn=5120, gated=True)
    yield (
        "t5-v1_1-xxl-encoder-q8_0",
        _t5("t5-v1_1-xxl-encoder", layers=24, width=4096, heads=64, ffn=10240, gated=True, decoder=False),
    )
    yield "wavtokenizer-large-75-f16", _wavtokenizer()
