"""The tensors of a model, by name and shape, from its hyperparameters: one small function per architecture.

Names, shapes and order are those of `load_arch_tensors` in llama.cpp b11434 (src/models/*.cpp), as its own
converter writes them. Pieces that architectures share are functions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plan_llama.errors import ProfileError

Named = tuple[str, tuple[int, ...]]  # name and shape in ggml's order


@dataclass(frozen=True, slots=True)
class Shapes:
    """Hyperparameters as integers, by the header's keys without the architecture prefix."""

    hparams: Mapping[str, Any]
    vocab: int

    def __getitem__(self, key: str) -> int:
        value = self.hparams.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ProfileError(f"hyperparameter '{key}' must be an integer, found {value!r}")
        return value

    def get(self, key: str) -> int:
        """0 where the key is absent."""
        return self[key] if key in self.hparams else 0


def tensors(architecture: str, hparams: Mapping[str, Any], vocab: int) -> tuple[Named, ...] | None:
    """Every tensor of a model in file order; None for an architecture that is not described here.

    Raises ProfileError where a hyperparameter is missing.
    """
    build = BUILDERS.get(architecture)
    return tuple(build(Shapes(hparams, vocab))) if build else None


def _ends(h: Shapes) -> Iterator[Named]:
    """Embedding, last norm and an output head of its own."""
    embd = h["embedding_length"]
    yield "token_embd.weight", (embd, h.vocab)
    yield "output_norm.weight", (embd,)
    yield "output.weight", (embd, h.vocab)


def _mla(h: Shapes, blk: str) -> Iterator[Named]:
    """Multi-head latent attention with a low-rank query, K and V up-projections split per head."""
    embd, heads = h["embedding_length"], h["attention.head_count"]
    q_rank, kv_rank, rope = (
        h["attention.q_lora_rank"],
        h["attention.kv_lora_rank"],
        h["rope.dimension_count"],
    )
    key, value = h["attention.key_length_mla"], h["attention.value_length_mla"]
    yield f"{blk}.attn_norm.weight", (embd,)
    yield f"{blk}.attn_q_a_norm.weight", (q_rank,)
    yield f"{blk}.attn_kv_a_norm.weight", (kv_rank,)
    yield f"{blk}.attn_q_a.weight", (embd, q_rank)
    yield f"{blk}.attn_q_b.weight", (q_rank, heads * key)
    yield f"{blk}.attn_kv_a_mqa.weight", (embd, kv_rank + rope)
    yield f"{blk}.attn_k_b.weight", (key - rope, kv_rank, heads)
    yield f"{blk}.attn_v_b.weight", (kv_rank, value, heads)
    yield f"{blk}.attn_output.weight", (heads * value, embd)


def _indexer(h: Shapes, blk: str) -> Iterator[Named]:
    """The small attention that picks the tokens of sparse attention."""
    embd, heads, key = (
        h["embedding_length"],
        h["attention.indexer.head_count"],
        h["attention.indexer.key_length"],
    )
    yield f"{blk}.indexer.k_norm.weight", (key,)
    yield f"{blk}.indexer.k_norm.bias", (key,)
    yield f"{blk}.indexer.proj.weight", (embd, heads)
    yield f"{blk}.indexer.attn_k.weight", (embd, key)
    yield f"{blk}.indexer.attn_q_b.weight", (h["attention.q_lora_rank"], heads * key)


def _gated(h: Shapes, blk: str, suffix: str, width: int, experts: tuple[int, ...] = ()) -> Iterator[Named]:
    """Gate, up and down of a feed-forward network, or of a stack of experts."""
    embd = h["embedding_length"]
    yield f"{blk}.ffn_gate{suffix}.weight", (embd, width, *experts)
    yield f"{blk}.ffn_up{suffix}.weight", (embd, width, *experts)
    yield f"{blk}.ffn_down{suffix}.weight", (width, embd, *experts)


def _experts(h: Shapes, blk: str) -> Iterator[Named]:
    """Router with a selection bias, routed experts, and shared experts merged into one."""
    count, width = h["expert_count"], h["expert_feed_forward_length"]
    yield f"{blk}.ffn_gate_inp.weight", (h["embedding_length"], count)
    yield f"{blk}.exp_probs_b.bias", (count,)
    yield from _gated(h, blk, "_exps", width, (count,))
    if shared := h.get("expert_shared_count"):
        yield from _gated(h, blk, "_shexp", width * shared)


def _nextn(h: Shapes, blk: str) -> Iterator[Named]:
    """What a block for next-token prediction has beside an ordinary block's tensors."""
    embd = h["embedding_length"]
    yield f"{blk}.nextn.eh_proj.weight", (2 * embd, embd)
    yield f"{blk}.nextn.enorm.weight", (embd,)
    yield f"{blk}.nextn.hnorm.weight", (embd,)
    yield f"{blk}.nextn.shared_head_norm.weight", (embd,)


def _glm_dsa(h: Shapes) -> Iterator[Named]:
    """src/models/glm-dsa.cpp"""
    yield from _ends(h)
    blocks = h["block_count"]
    for index in range(blocks):
        blk = f"blk.{index}"
        yield from _mla(h, blk)
        yield f"{blk}.ffn_norm.weight", (h["embedding_length"],)
        yield from _indexer(h, blk)
        if index < h.get("leading_dense_block_count"):
            yield from _gated(h, blk, "", h["feed_forward_length"])
        else:
            yield from _experts(h, blk)
        if index >= blocks - h.get("nextn_predict_layers"):
            yield from _nextn(h, blk)


BUILDERS: dict[str, Callable[[Shapes], Iterator[Named]]] = {
    "glm-dsa": _glm_dsa,
}
