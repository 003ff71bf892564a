"""What the builders are made of: hyperparameters as shapes, a block, and the parts that families share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plan_llama.errors import ProfileError

Named = tuple[str, tuple[int, ...]]  # name and shape in ggml's order

TRAIT = "tensors."  # prefix of the hyperparameters that say which optional tensors there are

# A model from the outside is built before anything is allocated for it: LLAMA_MAX_LAYERS of b11434.
_MAX_BLOCKS = 512


@dataclass(frozen=True, slots=True)
class Shapes:
    """Hyperparameters as integers, by the header's keys without the architecture prefix."""

    hparams: Mapping[str, Any]
    vocab: int

    def __getitem__(self, key: str) -> int:
        return _integer(key, self.hparams.get(key))

    def get(self, key: str) -> int:
        """0 where the key is absent."""
        return self[key] if key in self.hparams else 0

    def divisor(self, key: str) -> int:
        """A number that something is divided by. Raises ProfileError for 0."""
        if (value := self[key]) < 1:
            raise ProfileError(f"hyperparameter '{key}' must be positive, found {value}")
        return value

    def at(self, key: str, index: int) -> int:
        """The value for one block, of a key that may hold one number or one per block."""
        value = self.hparams.get(key)
        if isinstance(value, tuple):
            return _integer(key, value[index] if index < len(value) else None)
        return _integer(key, value)

    def has(self, trait: str, default: bool = False) -> bool:
        """Whether the model has some optional tensors: `tensors.{trait}`."""
        return bool(self.hparams.get(TRAIT + trait, default))

    @property
    def embd(self) -> int:
        """The width of the residual stream."""
        return self["embedding_length"]

    @property
    def layers(self) -> int:
        """Blocks that run for a token: all but those for next-token prediction."""
        return self["block_count"] - self.get("nextn_predict_layers")

    def blocks(self) -> Iterator[Block]:
        """Every block, those for next-token prediction included. Raises ProfileError for too many."""
        count = self["block_count"]
        if not 0 < count <= _MAX_BLOCKS:
            raise ProfileError(f"hyperparameter 'block_count' must be from 1 to {_MAX_BLOCKS}, found {count}")
        return (Block(self, index) for index in range(count))


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a model, and the sizes that may differ from block to block."""

    h: Shapes
    index: int

    def weight(self, name: str, *shape: int) -> Named:
        """`blk.N.{name}.weight` of that shape."""
        return f"blk.{self.index}.{name}.weight", shape

    def bias(self, name: str, *shape: int) -> Named:
        """`blk.N.{name}.bias` of that shape."""
        return f"blk.{self.index}.{name}.bias", shape

    def plain(self, name: str, *shape: int) -> Named:
        """`blk.N.{name}` of that shape: the few names without a suffix."""
        return f"blk.{self.index}.{name}", shape

    def norm(self, name: str, width: int = 0) -> Named:
        """A norm's weight, as wide as the residual stream unless another width is given."""
        return self.weight(name, width or self.h.embd)

    @property
    def drafts(self) -> bool:
        """Whether this is a block for next-token prediction."""
        return self.index >= self.h.layers

    @property
    def leading_dense(self) -> bool:
        """Whether this is one of the first blocks of a model with experts, which have a dense network."""
        return self.index < self.h.get("leading_dense_block_count")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.h.at("attention.head_count", self.index)

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads where the header says nothing."""
        key = "attention.head_count_kv"
        return self.h.at(key, self.index) if key in self.h.hparams else self.heads

    @property
    def key(self) -> int:
        """Elements of a key head."""
        return self.h.get("attention.key_length") or self._share

    @property
    def value(self) -> int:
        """Elements of a value head."""
        return self.h.get("attention.value_length") or self._share

    @property
    def _share(self) -> int:
        if self.heads < 1:
            raise ProfileError(
                f"hyperparameter 'attention.head_count' must be at least 1, found {self.heads}"
            )
        return self.h.embd // self.heads

    @property
    def ffn(self) -> int:
        """Width of the dense feed-forward network."""
        return self.h.at("feed_forward_length", self.index)


Builder = Callable[[Shapes], Iterator[Named]]


def _integer(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProfileError(f"hyperparameter '{key}' must be an integer, found {value!r}")
    return value


def ends(h: Shapes, *, tied: bool | None = None, norm_bias: bool = False) -> Iterator[Named]:
    """Embedding, last norm, and an output head where it is not the embedding again (`tensors.tied`)."""
    if h.has("rope_freqs"):
        yield "rope_freqs.weight", (_rotated(h) // 2,)
    if h.has("rope_factors"):  # LongRoPE: one table for long and one for short contexts
        yield "rope_factors_long.weight", (_rotated(h) // 2,)
        yield "rope_factors_short.weight", (_rotated(h) // 2,)
    yield "token_embd.weight", (h.embd, h.vocab)
    yield "output_norm.weight", (h.embd,)
    if norm_bias:
        yield "output_norm.bias", (h.embd,)
    if not (h.has("tied") if tied is None else tied):
        yield "output.weight", (h.embd, h.vocab)


def _rotated(h: Shapes) -> int:
    """Elements of a head that turn with the position."""
    return h.get("rope.dimension_count") or next(h.blocks()).key


def attention(b: Block, *, bias: bool | None = None, output_bias: bool | None = None) -> Iterator[Named]:
    """Grouped-query attention: Q, K, V and output, with biases as said or by the model's traits."""
    bias = b.h.has("attention_bias") if bias is None else bias
    output_bias = b.h.has("attention_output_bias") if output_bias is None else output_bias
    widths = {"attn_q": b.heads * b.key, "attn_k": b.kv_heads * b.key, "attn_v": b.kv_heads * b.value}
    for name, width in widths.items():
        yield b.weight(name, b.h.embd, width)
        if bias:
            yield b.bias(name, width)
    yield b.weight("attn_output", b.heads * b.value, b.h.embd)
    if output_bias:
        yield b.bias("attn_output", b.h.embd)


def qk_norm(b: Block) -> Iterator[Named]:
    """Norms over each query and key head."""
    yield b.norm("attn_q_norm", b.key)
    yield b.norm("attn_k_norm", b.key)


def norm_rows(b: Block) -> Iterator[Named]:
    """Norms over all query heads and all key heads at once."""
    yield b.norm("attn_q_norm", b.heads * b.key)
    yield b.norm("attn_k_norm", b.kv_heads * b.key)


def gated(
    b: Block, width: int, suffix: str = "", *experts: int, bias: bool = False, embd: int = 0
) -> Iterator[Named]:
    """Gate, up and down of a feed-forward network, or of a stack of experts.

    `embd`: the width of the stream they work on, where it is not the residual stream.
    """
    embd = embd or b.h.embd
    yield b.weight(f"ffn_gate{suffix}", embd, width, *experts)
    yield b.weight(f"ffn_up{suffix}", embd, width, *experts)
    yield b.weight(f"ffn_down{suffix}", width, embd, *experts)
    if bias:
        yield b.bias(f"ffn_gate{suffix}", width, *experts)
        yield b.bias(f"ffn_up{suffix}", width, *experts)
        yield b.bias(f"ffn_down{suffix}", embd, *experts)


def experts(
    b: Block, *, selection_bias: bool = False, width: int = 0, shared: int = 0, latent: int = 0
) -> Iterator[Named]:
    """Router, routed experts, and (`shared`: their width) shared ones merged into one.

    Without `width` the experts are as wide as `expert_feed_forward_length` says. `latent`: routed experts work
    on a smaller stream of that width.
    """
    count = b.h["expert_count"]
    width = width or b.h.at("expert_feed_forward_length", b.index)
    yield b.weight("ffn_gate_inp", b.h.embd, count)
    if selection_bias:
        yield b.bias("exp_probs_b", count)
    yield from gated(b, width, "_exps", count, embd=latent)
    if shared:
        yield from gated(b, shared, "_shexp")


def nextn(b: Block, *, embedding: bool = False) -> Iterator[Named]:
    """What a block for next-token prediction has beside an ordinary block's tensors.

    `embedding`: it has an embedding and an output head of its own.
    """
    embd = b.h.embd
    yield b.weight("nextn.eh_proj", 2 * embd, embd)
    yield b.weight("nextn.enorm", embd)
    yield b.weight("nextn.hnorm", embd)
    yield b.weight("nextn.shared_head_norm", embd)
    if embedding:
        yield b.weight("nextn.embed_tokens", embd, b.h.vocab)
        yield b.weight("nextn.shared_head_head", embd, b.h.vocab)
