"""Graphs of the Cohere family: attention and feed-forward side by side, behind one norm."""

from __future__ import annotations

from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.decoder import Decoder


class CommandR(Decoder):
    """Command R (src/models/command-r.cpp)."""

    norm_op = "NORM"

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Of the same kind as the others."""
        prefix = f"blk.{il}"
        if not self.b.has(f"{prefix}.attn_q_norm.weight"):
            return q, k
        return self.norm(q, f"{prefix}.attn_q_norm"), self.norm(k, f"{prefix}.attn_k_norm")

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer: the norm, both branches on it, and their sum with the residual."""
        g = self.g
        ffn_in = self.norm(x, f"blk.{il}.attn_norm")
        attention = self.attention_of(ffn_in, il)
        if last and not self.late_rows:
            attention, x, ffn_in = (g.get_rows(node, self.out_ids) for node in (attention, x, ffn_in))
        out = self.feed_forward(ffn_in, il)
        return g.like("ADD", g.like("ADD", out, x), attention)


class Cohere2(CommandR):
    """Only layers behind a window have rope (src/models/cohere2.cpp)."""

    @property
    def unrotated(self) -> frozenset[int]:
        """Those without a window."""
        return frozenset(range(self.spec.layers)) - self.windowed


class Cohere2Moe(Cohere2):
    """Experts, and rope in the dense layers before them (src/models/cohere2moe.cpp)."""

    late_rows = True
    normed_rows = True
    default_gating = 2
    default_normalise = False

    def norm(self, x: Node, name: str) -> Node:
        """RMS where the header has an epsilon for it."""
        rms = self.spec.hparams.get("attention.layer_norm_rms_epsilon")
        return self.b.norm(x, name, op="RMS_NORM" if rms else "NORM")

    @property
    def unrotated(self) -> frozenset[int]:
        """Those without a window that have experts."""
        return super().unrotated - set(range(self.spec.int_param("leading_dense_block_count", 0)))

    def feed_forward(self, x: Node, il: int) -> Node:
        """The mean of the experts chosen and the shared one."""
        out = super().feed_forward(x, il)
        return self.g.like("SCALE", out) if self.b.has(f"blk.{il}.ffn_up_shexp.weight") else out
