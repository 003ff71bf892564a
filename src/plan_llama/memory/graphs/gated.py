"""Graphs whose attention passes a gate before its output projection.

Mirrors the files of src/models of llama.cpp b11434 that the classes name.
"""

from __future__ import annotations

from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.variants import WindowRotation


class Spark(Decoder):
    """One gate per head (src/models/spark2-5.cpp)."""

    def attention_of(self, x: Node, il: int) -> Node:
        """Attention, its heads times their gates, the output projection."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        q, k, v = self.qkv(x, il)
        q, k = self.positioned(q, k, il)
        out = self.cached_attention(q, k, v, il)
        gate = g.like("UNARY", g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), x))
        heads, tokens = self.heads(il), out.ne[1]
        out = g.like(
            "MUL", g.reshape(out, out.ne[0] // heads, heads, tokens), g.reshape(gate, 1, heads, tokens)
        )
        return self.attention_output(g.reshape(out, out.ne[0] * heads, tokens), il)


class MuseGlimmer(WindowRotation):
    """A gate of attention's width, norms behind both branches, normed token rows (src/models/muse-glimmer.cpp)."""

    def inputs(self) -> Node:
        """The first layer's input."""
        return self.norm(super().inputs(), "")

    def attention_of(self, x: Node, il: int) -> Node:
        """Attention times its gate, the output projection, a norm."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        q, k, v = self.qkv(x, il)
        q, k = self.positioned(q, k, il)
        out = self.cached_attention(q, k, v, il)
        gate = g.like("UNARY", b.mm(f"{prefix}.attn_gate", x))
        out = self.attention_output(g.like("MUL", out, gate), il)
        return b.norm(out, f"{prefix}.post_attention_norm")

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.attention_of(b.norm(x, f"{prefix}.attn_norm"), il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        ffn_in = g.like("ADD", cur, x)
        fed = b.ffn(b.norm(ffn_in, f"{prefix}.ffn_norm"), prefix)
        return g.like("ADD", b.norm(fed, f"{prefix}.post_ffw_norm"), ffn_in)


class Maple(WindowRotation):
    """Experts in every layer, rotation behind windows only (src/models/maple.cpp)."""

    fixed_normalise = True


class HrmText(Decoder):
    """Two stacks of layers that take turns over the same tokens (src/models/hrm-text.cpp).

    Blocks of the header are the layers' caches; the low stack's weights are the first blocks, the high one's follow.
    """

    each_layer_differs = True

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.stack = self.spec.int_param("hrm.layers_per_stack", 0)
        self.low_cycles = self.spec.int_param("hrm.l_cycles", 0)
        if not self.stack:
            raise UndescribedGraph("hrm.layers_per_stack")

    def inputs(self) -> Node:
        """The high state is the token rows, the low one a weight."""
        self.high = super().inputs()
        self.low = self.b.w("hrm.z_l_init")
        return self.high

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked in the head
        """A layer; the first of a stack starts from the sum of both states, the last one sets one of them."""
        g = self.g
        turn, position = divmod(il, self.stack)
        high = turn % (self.low_cycles + 1) == self.low_cycles
        if not position:
            x = g.like("ADD", self.high, self.low)
        x = self._layer(x, il, position + self.stack * high)
        if position == self.stack - 1:
            x = self.norm(x, "")
            if high:
                self.high = x
            else:
                self.low = x
        return x

    def _layer(self, x: Node, slot: int, block: int) -> Node:
        b, g, prefix = self.b, self.g, f"blk.{block}"
        self.slot = slot
        normed = self.norm(x, "")
        gate = g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), normed)
        q, k, v = self.qkv(normed, block)
        q, k = self.positioned(q, k, block)
        out = self.cached_attention(q, k, v, slot)
        out = self.project(f"{prefix}.attn_output", g.like("MUL", out, g.like("UNARY", gate)))
        x = g.like("ADD", out, x)
        normed = self.norm(x, "")
        up, gate = (g.mul_mat(b.w(f"{prefix}.ffn_{name}.weight"), normed) for name in ("up", "gate"))
        return g.like("ADD", g.mul_mat(b.w(f"{prefix}.ffn_down.weight"), g.glu(gate, up)), x)

    def project(self, name: str, x: Node) -> Node:
        """Weights and biases are shared by the turns of a stack; a scale is the turn's own."""
        out = self.g.mul_mat(self.b.w(f"{name}.weight"), x)
        own = f"blk.{self.slot}.{name.split('.')[2]}.scale"
        for extra, op in ((own, "MUL"), (f"{name}.bias", "ADD")):
            if self.b.has(extra):
                out = self.g.like(op, out, self.b.w(extra))
        return out

    def head(self, x: Node) -> None:
        """The rows that are wanted and their logits."""
        x = self.g.get_rows(x, self.out_ids)
        x.is_output = True
        self.logits(x)
