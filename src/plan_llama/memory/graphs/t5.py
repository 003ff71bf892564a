"""T5: an encoder, and a decoder that reads what the encoder made of a text.

Mirrors src/models/t5.cpp and t5encoder.cpp of llama.cpp b11434. For T5 the decoder's graph is reserved, with an encoded
text as long as the model was trained for. Scores have a bias by distance, which rules flash attention out.
"""

from __future__ import annotations

from plan_llama.memory.blocks import UndescribedGraph
from plan_llama.memory.ggml import F16, F32, I32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.encoder import NoCache


class _Stack(Decoder):
    """What both stacks of layers share."""

    stack = "dec"

    def inputs(self) -> Node:
        """Token rows, and how far apart tokens and what they see are, in buckets."""
        x = super().inputs()
        self.buckets = self.g.input(I32, self.seen(), self.batch.tokens)
        return x

    def seen(self) -> int:
        """Cells or tokens that a token is compared with."""
        return self.batch.cells

    def qkv(self, x: Node, il: int) -> tuple[Node, Node, Node]:
        """Three products."""
        heads, kv_heads, tokens = self.heads(il), self.kv_heads(il), self.batch.tokens
        name = f"{self.stack}.blk.{il}.attn"
        return (
            self.g.reshape(self.b.mm(f"{name}_q", x), self.head_k(il), heads, tokens),
            self.g.reshape(self.b.mm(f"{name}_k", x), self.head_k(il), kv_heads, tokens),
            self.g.reshape(self.b.mm(f"{name}_v", x), self.head_v(il), kv_heads, tokens),
        )

    def positioned(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:  # noqa: ARG002 - all layers alike
        """No rotation."""
        return q, k

    def heads_of(self, x: Node, il: int) -> Node:
        """Attention with the bias of the layer, or of the first one."""
        q, k, v = self.qkv(x, il)
        self.score_bias = self._distances(il)
        return self.cached_attention(q, k, v, il)

    def _distances(self, il: int) -> Node:
        """build_pos_bias: a row of the table for every pair, then heads outermost."""
        g, own = self.g, f"{self.stack}.blk.{il}.attn_rel_b.weight"
        table = self.b.w(own if self.b.has(own) else f"{self.stack}.blk.0.attn_rel_b.weight")
        seen, tokens = self.buckets.ne[:2]
        rows = g.get_rows(table, g.reshape(self.buckets, seen * tokens))
        return g.cont(g.permute(g.reshape(rows, rows.ne[0], seen, tokens), 2, 0, 1, 3))

    def attention_output(self, x: Node, il: int) -> Node:
        """The output projection behind attention."""
        return self.b.mm(f"{self.stack}.blk.{il}.attn_o", x)

    def wanted(self, *nodes: Node, last: bool) -> tuple[Node, ...]:
        """The rows that are wanted, behind the last layer's attention."""
        return tuple(self.g.get_rows(node, self.out_ids) for node in nodes) if last else nodes

    def fed(self, x: Node, il: int) -> Node:
        """Norm, feed-forward, residual."""
        prefix = f"{self.stack}.blk.{il}"
        return self.g.like("ADD", self.b.ffn(self.norm(x, f"{prefix}.ffn_norm"), prefix), x)


class T5(_Stack):
    """The decoder (src/models/t5.cpp, graph<false>)."""

    def inputs(self) -> Node:
        """The first layer's input; beside it the encoded text and its mask."""
        if self.spec.int_param("decoder_block_count", 0) not in (0, self.spec.layers):
            raise UndescribedGraph("decoder_block_count: another number than the encoder's")
        g, length = self.g, self.spec.context_train
        x = super().inputs()
        self.text = g.input(F32, self.spec.int_param("embedding_length"), length)
        self.text_mask = g.input(F16 if self.batch.flash_attn else F32, length, self.batch.tokens)
        return x

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Attention to what was written, attention to the text, feed-forward."""
        g, prefix = self.g, f"dec.blk.{il}"
        x = g.like("ADD", self.attention_of(self.norm(x, f"{prefix}.attn_norm"), il), x)
        cur = self._text_attention(self.norm(x, f"{prefix}.cross_attn_norm"), il)
        cur, x = self.wanted(cur, x, last=last)
        return self.fed(g.like("ADD", cur, x), il)

    def _text_attention(self, x: Node, il: int) -> Node:
        """build_attn_inp_cross: keys and values are made of the encoded text, in every batch."""
        b, g, name = self.b, self.g, f"dec.blk.{il}.cross_attn"
        length, kv_heads = self.text.ne[1], self.kv_heads(il)
        q = g.mul_mat(b.w(f"{name}_q.weight"), x)
        k = g.mul_mat(b.w(f"{name}_k.weight"), self.text)
        v = g.mul_mat(b.w(f"{name}_v.weight"), self.text)
        q = g.reshape(q, self.head_k(il), self.heads(il), self.batch.tokens)
        k = g.reshape(k, self.head_k(il), kv_heads, length)
        v = g.reshape(v, self.head_v(il), kv_heads, length)
        g.expand(q, k, v)
        return g.mul_mat(b.w(f"{name}_o.weight"), b.attention(q, k, v, self.text_mask))

    def head(self, x: Node) -> None:
        """Final norm and logits."""
        x = self.norm(x, "dec.output_norm")
        x.is_output = True
        self.logits(x)


class T5Encoder(NoCache, _Stack):
    """The encoder alone (src/models/t5encoder.cpp, graph<true> of t5.cpp)."""

    stack = "enc"

    def seen(self) -> int:
        """The whole batch."""
        return self.batch.tokens

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:  # noqa: ARG002 - all layers alike
        """build_attn of the batch alone."""
        self.g.expand(q, k, v)
        return self.b.attention(q, k, v, self.mask, bias=self.score_bias)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Attention, residual, feed-forward, residual."""
        cur = self.attention_of(self.norm(x, f"enc.blk.{il}.attn_norm"), il)
        cur, x = self.wanted(cur, x, last=last)
        return self.fed(self.g.like("ADD", cur, x), il)

    def head(self, x: Node) -> None:
        """The final norm."""
        x = self.norm(x, "enc.output_norm")
        x.is_output = True
        self.g.expand(x)
