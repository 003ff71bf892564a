"""Graphs without a cache: encoders that make embeddings, and models that write by diffusion.

Mirrors the files of src/models of llama.cpp b11434 that the classes name; without `--embeddings` there is no pooling.
"""

from __future__ import annotations

from plan_llama.memory.blocks import UndescribedGraph
from plan_llama.memory.ggml import F16, F32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.windows import windows


class NoCache(Decoder):
    """A plain decoder that attends within the batch (src/models/dream.cpp)."""

    def attention_inputs(self) -> None:
        """build_attn_inp_no_cache: a mask of tokens by tokens, and a second one where there are windows."""
        tokens = self.batch.tokens
        kind = F16 if self.batch.flash_attn else F32
        self.windowed = windows(self.spec).layers
        self.mask = self.g.input(kind, tokens, tokens)
        self.window_mask = self.g.input(kind, tokens, tokens)

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:
        """build_attn of the batch alone."""
        self.g.expand(q, k, v)
        return self.b.attention(q, k, v, self.window_mask if il in self.windowed else self.mask)


class Llada(NoCache):
    """Rotates without frequency factors, also where a file has them (src/models/llada.cpp)."""

    def positioned(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:  # noqa: ARG002 - all layers alike
        """Queries and keys, rotated."""
        return self.b.rope(q, self.positions), self.b.rope(k, self.positions)


class LladaMoe(NoCache):
    """The weights of experts are not divided by their sum (src/models/llada-moe.cpp)."""

    fixed_normalise = False


class Rnd1(NoCache):
    """As Qwen3 with experts (src/models/rnd1.cpp)."""

    fixed_normalise = True


class Encoder(NoCache):
    """No head: the normed rows are the result (src/models/eurobert.cpp, llama-embed.cpp)."""

    final_norm = "output_norm"

    def head(self, x: Node) -> None:
        """The final norm."""
        x = self.norm(x, self.final_norm)
        x.is_output = True
        self.g.expand(x)


class NeoBert(Encoder):
    """The final norm has a name of its own (src/models/neo-bert.cpp)."""

    final_norm = "enc.output_norm"


class GemmaEmbedding(Encoder):
    """Gemma's norms and scales, windows on both sides (src/models/gemma-embedding.cpp)."""

    post_norms = True
    scaled_embedding = True
    scaled_query = True


class ModernBert(Encoder):
    """Normed token rows, no norm before the first attention (src/models/modern-bert.cpp)."""

    norm_op = "NORM"

    def inputs(self) -> Node:
        """The first layer's input."""
        if any(tensor.name.startswith("decision.") for tensor in self.spec.tensors):
            raise UndescribedGraph("a head that makes decisions")
        return self.norm(super().inputs(), "token_embd_norm")

    def norm(self, x: Node, name: str) -> Node:
        """No norm where the first layer has none."""
        if name.endswith(".attn_norm") and not self.b.has(f"{name}.weight"):
            return x
        return super().norm(x, name)


class Bert(NoCache):
    """Norms behind the branches (src/models/bert.cpp; Jina and Nomic share it)."""

    norm_op = "NORM"
    learned_positions = False

    def inputs(self) -> Node:
        """Token rows, their type and their position, normed."""
        b, g = self.b, self.g
        x = super().inputs()
        types = b.maybe("token_types.weight")
        if types is not None:
            x = g.like("ADD", x, g.view(types, (types.ne[0],), ()))
        if self.learned_positions:
            x = g.like("ADD", g.get_rows(b.w("position_embd.weight"), self.positions), x)
        return self.norm(x, "token_embd_norm")

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Norms over all heads at once, each where a file has it."""
        return self._norm_of_row(q, f"blk.{il}.attn_q_norm"), self._norm_of_row(k, f"blk.{il}.attn_k_norm")

    def _norm_of_row(self, x: Node, name: str) -> Node:
        if not self.b.has(f"{name}.weight"):
            return x
        flat = self.g.reshape(x, x.ne[0] * x.ne[1], x.ne[2])
        return self.g.reshape(self.norm(flat, name), *x.ne[:3])

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Attention, residual, norm, feed-forward, residual, norm."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.attention_of(x, il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        cur = self.norm(g.like("ADD", cur, x), f"{prefix}.attn_output_norm")
        if b.has(f"{prefix}.attn_norm_2.weight"):
            cur = self.norm(g.like("ADD", cur, x), f"{prefix}.attn_norm_2")
        fed = self.feed_forward(cur, il)
        return self.norm(g.like("ADD", fed, cur), f"{prefix}.layer_output_norm")

    def head(self, x: Node) -> None:
        """The last layer's rows."""
        x.is_output = True
        self.g.expand(x)


class UnrotatedBert(Bert):
    """Attention biased by distance (jina-bert-v2)."""

    @property
    def unrotated(self) -> frozenset[int]:
        """All."""
        return frozenset(range(self.spec.layers))


class LearnedBert(UnrotatedBert):
    """A table of positions (bert)."""

    learned_positions = True


class NomicBertMoe(Bert):
    """Experts in every n-th layer (nomic-bert-moe)."""

    fixed_normalise = False
