"""Model specs of a few layers, with the tensors and keys that converters write for their architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plan_llama.models.ggml_types import by_name
from plan_llama.models.spec import block_of
from plan_llama.models.types import ModelSpec, Tensor, TensorType

VOCABULARY = 4096


def llama_like(
    *, layers: int = 4, width: int = 512, heads: int = 8, kv_heads: int = 2, kind: str = "q4_K"
) -> ModelSpec:
    """A dense decoder as Llama 3 is one."""
    hidden = 3 * width
    tensors: list[Tensor] = [*_outer(width, kind)]
    for il in range(layers):
        tensors += _attention(il, width, heads, kv_heads, width // heads, by_name(kind))
        tensors += [
            Tensor(f"blk.{il}.ffn_gate.weight", by_name(kind), (width, hidden)),
            Tensor(f"blk.{il}.ffn_up.weight", by_name(kind), (width, hidden)),
            Tensor(f"blk.{il}.ffn_down.weight", by_name(kind), (hidden, width)),
        ]
    keys = {
        "block_count": layers,
        "context_length": 32768,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "rope.dimension_count": width // heads,
    }
    return _spec("llama", tensors, keys)


def qwen3moe_like(
    *,
    layers: int = 4,
    width: int = 512,
    experts: int = 16,
    used: int = 4,
    hidden: int = 256,
    kind: str = "q4_K",
) -> ModelSpec:
    """Experts in every layer, norms on queries and keys, as Qwen3-30B-A3B has them."""
    heads, kv_heads, head = 8, 2, 128
    tensors: list[Tensor] = [*_outer(width, kind)]
    for il in range(layers):
        tensors += _attention(il, width, heads, kv_heads, head, by_name(kind))
        tensors += [
            Tensor(f"blk.{il}.attn_q_norm.weight", by_name("f32"), (head,)),
            Tensor(f"blk.{il}.attn_k_norm.weight", by_name("f32"), (head,)),
            Tensor(f"blk.{il}.ffn_gate_inp.weight", by_name("f32"), (width, experts)),
            Tensor(f"blk.{il}.ffn_gate_exps.weight", by_name(kind), (width, hidden, experts)),
            Tensor(f"blk.{il}.ffn_up_exps.weight", by_name(kind), (width, hidden, experts)),
            Tensor(f"blk.{il}.ffn_down_exps.weight", by_name(kind), (hidden, width, experts)),
        ]
    keys = {
        "block_count": layers,
        "context_length": 32768,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": hidden,
    }
    return _spec("qwen3moe", tensors, keys)


def _outer(width: int, kind: str) -> tuple[Tensor, ...]:
    return (
        Tensor("token_embd.weight", by_name(kind), (width, VOCABULARY)),
        Tensor("output_norm.weight", by_name("f32"), (width,)),
        Tensor("output.weight", by_name(kind), (width, VOCABULARY)),
    )


def _attention(
    il: int, width: int, heads: int, kv_heads: int, head: int, kind: TensorType
) -> tuple[Tensor, ...]:
    return (
        Tensor(f"blk.{il}.attn_norm.weight", by_name("f32"), (width,)),
        Tensor(f"blk.{il}.attn_q.weight", kind, (width, heads * head)),
        Tensor(f"blk.{il}.attn_k.weight", kind, (width, kv_heads * head)),
        Tensor(f"blk.{il}.attn_v.weight", kind, (width, kv_heads * head)),
        Tensor(f"blk.{il}.attn_output.weight", kind, (heads * head, width)),
        Tensor(f"blk.{il}.ffn_norm.weight", by_name("f32"), (width,)),
    )


def _spec(architecture: str, tensors: list[Tensor], keys: Mapping[str, int]) -> ModelSpec:
    return ModelSpec(
        name=f"small {architecture}",
        architecture=architecture,
        quant="Q4_K_M",
        tensors=tuple(tensors),
        hparams=keys,
        vocab_size=VOCABULARY,
        file_bytes=sum(tensor.nbytes for tensor in tensors),
        path="small.gguf",
        present=True,
    )


def cut(spec: ModelSpec, layers: int) -> ModelSpec:
    """The first layers of a model, without its blocks for drafting."""
    whole = int(spec.int_param("block_count"))
    drafting = spec.int_param("nextn_predict_layers", 0)
    keys = {
        key: value[:layers] if isinstance(value, tuple) and len(value) in (whole, whole - drafting) else value
        for key, value in spec.hparams.items()
    }
    keys["block_count"] = layers
    if drafting:
        keys["nextn_predict_layers"] = 0
    return replace(
        spec,
        name=f"{spec.name}-{layers}L",
        tensors=tuple(t for t in spec.tensors if (block_of(t) or 0) < layers),
        hparams=keys,
    )
