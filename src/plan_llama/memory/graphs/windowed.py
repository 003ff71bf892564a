"""Graphs of decoders with sliding windows that belong to no larger family."""

from __future__ import annotations

from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.variants import RowNorms


class Exaone4(Decoder):
    """No norms before the branches; with windows, rope only behind one (src/models/exaone4.cpp)."""

    pre_norms = False
    post_norms = True

    @property
    def unrotated(self) -> frozenset[int]:
        """Those without a window, in a model that has windows."""
        return frozenset(range(self.spec.layers)) - self.windowed if self.windowed else frozenset()


class Olmo2(RowNorms):
    """Norms behind the branches and over whole rows of Q and K (src/models/olmo2.cpp, also Olmo 3)."""

    pre_norms = False
    post_norms = True


class Step35(RowNorms):
    """A gate per head, clamped activations (src/models/step35.cpp)."""

    row_norms = False
    late_rows = True
    clamped_glu = True
    default_gating = 2
    default_normalise = False

    def rope(self, x: Node, il: int) -> Node:
        """Factors only without a window."""
        return self.b.rope(x, self.positions, None if il in self.windowed else self.b.rope_factors(il))

    def heads_of(self, x: Node, il: int) -> Node:
        """The heads' gates, where the file has them."""
        attention = super().heads_of(x, il)
        if not self.b.has(f"blk.{il}.attn_gate.weight"):
            return attention
        return _gated_heads(self, attention, self.g.like("UNARY", self.b.mm(f"blk.{il}.attn_gate", x)), il)


class Mimo2(Decoder):
    """Heads of V smaller than those of K, sinks (src/models/mimo2.cpp)."""

    fixed_gating = 2
    fixed_normalise = True

    def project(self, name: str, x: Node) -> Node:
        """A bias is loaded, and not added."""
        return self.g.mul_mat(self.b.w(f"{name}.weight"), x)


class Afmoe(Decoder):
    """Gated attention, four norms, every fourth layer without rope (src/models/afmoe.cpp)."""

    post_norms = True
    rows_behind_norm = True
    default_gating = 2
    default_normalise = False

    def inputs(self) -> Node:
        """Scaled rows."""
        return self.g.like("SCALE", super().inputs())

    @property
    def unrotated(self) -> frozenset[int]:
        """Every fourth layer."""
        return self.every_fourth_layer(3)

    def heads_of(self, x: Node, il: int) -> Node:
        """Gated element by element."""
        g = self.g
        return g.like("MUL", super().heads_of(x, il), g.like("UNARY", self.b.mm(f"blk.{il}.attn_gate", x)))


class Laguna(Decoder):
    """Gated attention, by heads or elements; windows where the header says so (src/models/laguna.cpp)."""

    default_gating = 2
    default_normalise = False

    def heads_of(self, x: Node, il: int) -> Node:
        """The gate's width says which."""
        g = self.g
        attention = super().heads_of(x, il)
        gate = g.like("UNARY", self.b.mm(f"blk.{il}.attn_gate", x))
        return (
            _gated_heads(self, attention, gate, il)
            if gate.ne[0] == self.heads(il)
            else g.like("MUL", attention, gate)
        )


class SmallThinker(Decoder):
    """The router sees the layer's input (src/models/smallthinker.cpp)."""

    fixed_normalise = True

    @property
    def unrotated(self) -> frozenset[int]:
        """Every fourth layer, from the first; without windows none."""
        return self.every_fourth_layer(0) if self.windowed else frozenset()

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer; the router's logits go around the attention."""
        self.routed = self.b.mm(f"blk.{il}.ffn_gate_inp", x)
        if last:
            self.routed = self.g.get_rows(self.routed, self.out_ids)
        return super().block(x, il, last=last)

    def feed_forward(self, x: Node, il: int) -> Node:
        """The experts that the layer's input chose."""
        return self.experts_by(self.routed, x, il)


class Mellum(Decoder):
    """Experts behind windows (src/models/mellum.cpp)."""

    fixed_gating = 1
    fixed_normalise = True


class Plamo3(Decoder):
    """Q, K and V in one matrix, norms behind the branches (src/models/plamo3.cpp)."""

    def post_norm(self, x: Node, prefix: str, names: tuple[str, ...]) -> Node:
        """These tensors' names have no ending."""
        g = self.g
        return g.like("MUL", g.like("RMS_NORM", x), self.b.w(f"{prefix}.{names[0]}"))


class GraniteSwa(Decoder):
    """Granite with windows and sinks; which layers have rope is in the header (src/models/granite-swa.cpp)."""

    fixed_gating = 1
    fixed_normalise = True

    @property
    def unrotated(self) -> frozenset[int]:
        """By attention.rope_pattern; without one none."""
        layers = range(self.spec.layers)
        return frozenset(
            il for il in layers if not self.spec.int_param("attention.rope_pattern", 1, layer=il)
        )


def _gated_heads(graph: Decoder, attention: Node, gate: Node, il: int) -> Node:
    """One factor per head."""
    g, heads, tokens = graph.g, graph.heads(il), graph.batch.tokens
    split = g.reshape(attention, attention.ne[0] // heads, heads, tokens)
    return g.reshape(g.like("MUL", split, g.reshape(gate, 1, heads, tokens)), attention.ne[0], tokens)
