"""The graph of Grok."""

from __future__ import annotations

from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.decoder import Decoder


class Grok(Decoder):
    """Capped scores, experts beside a dense branch, norms behind both branches (src/models/grok.cpp)."""

    soft_caps = True
    post_norms = True
    fixed_gating = 1
    fixed_normalise = True

    def feed_forward(self, x: Node, il: int) -> Node:
        """The experts, and where there is a dense branch the scaled sum of both."""
        g, prefix = self.g, f"blk.{il}"
        experts = self.experts_of(x, il)
        if not self.b.has(f"{prefix}.ffn_up.weight"):
            return experts
        return g.like("SCALE", g.like("ADD", self.b.ffn(x, prefix), experts))
