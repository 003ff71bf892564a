"""Kimi K3: Kimi delta attention and latent attention over a mix of all residuals so far.

Mirrors src/models/kimi-k3.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.kimi import KimiLinear


class BoundedGates(KimiLinear):
    """What Kimi K3 and GLM-5-Next share: bounded gates of the delta attention, and products without scales."""

    fixed_normalise = None
    default_normalise = False

    def channel_gate(self, x: Node, prefix: str, head: int, heads: int) -> Node:
        """How much every channel forgets; the header's bound makes it a sigmoid."""
        if "kda.gate_lower_bound" not in self.spec.hparams:
            return super().channel_gate(x, prefix, head, heads)
        b, g = self.b, self.g
        low = g.mul_mat(b.w(f"{prefix}.ssm_f_a.weight"), x)
        gate = g.like("ADD", g.mul_mat(b.w(f"{prefix}.ssm_f_b.weight"), low), b.w(f"{prefix}.ssm_dt.bias"))
        gate = g.reshape(gate, head, heads, self.batch.tokens)
        gate = g.like("MUL", gate, g.reshape(b.w(f"{prefix}.ssm_a"), 1, heads, 1))
        return g.like("SCALE", g.like("UNARY", g.like("SCALE", gate)))

    def plain_ffn(self, x: Node, prefix: str, suffix: str = "") -> Node:
        """Gate and up, activation, down: whatever scales the file has beside them."""
        g = self.g
        gate, up, down = (self.b.w(f"{prefix}.ffn_{name}{suffix}.weight") for name in ("gate", "up", "down"))
        return g.mul_mat(down, self.b.gate(g.mul_mat(gate, x), g.mul_mat(up, x)))


def situ(b: Builder, gate: Node, up: Node) -> Node:
    """kimi_k3_situ: both sides through tanh, the gate through a sigmoid as well."""
    g = b.g
    bounded = g.like("SCALE", g.like("UNARY", g.like("SCALE", gate)))
    bounded = g.like("MUL", bounded, g.like("UNARY", gate))
    beta = b.spec.hparams.get("activation.situ_linear_beta", 0.0)
    if isinstance(beta, float) and beta > 0:
        up = g.like("SCALE", g.like("UNARY", g.like("SCALE", up)))
    return g.like("MUL", bounded, up)


class KimiK3(BoundedGates):
    """Every so many layers the residual is banked and begins anew; each branch sees a weighted mix of those banked and
    the current one. Experts work in a narrower space.
    """

    each_layer_differs = True  # by the number of residuals that are banked

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.every = self.spec.int_param("attn_res.block_size", 0)
        self.banked: Node | None = None
        builder.activation = situ

    # -- residuals ------------------------------------------------------------------------------------------------

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked in the head
        """A mix, attention, another mix, the feed-forward."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.mixed(x, f"{prefix}.attn_res_score.weight")
        banks = self.every > 0 and il % self.every == 0
        if banks:
            whole = g.reshape(x, x.ne[0], 1, x.ne[1])
            self.banked = whole if self.banked is None else g.concat(self.banked, whole, 1)
        cur = self.attention_of(b.norm(cur, f"{prefix}.attn_norm"), il)
        total = cur if banks else g.like("ADD", x, cur)
        cur = self.mixed(total, f"{prefix}.ffn_res_score.weight")
        return g.like("ADD", total, self.feed_forward(b.norm(cur, f"{prefix}.ffn_norm"), il))

    def mixed(self, x: Node, name: str) -> Node:
        """res_mix: scores of the banked residuals and of the current one, and their weighted sum."""
        if self.banked is None:
            return x
        b, g, banked = self.b, self.g, self.banked
        width, count, tokens = banked.ne[:3]
        scores = g.sum_rows(g.like("MUL", g.like("RMS_NORM", banked), b.w(name)))
        current = g.sum_rows(g.like("MUL", g.like("RMS_NORM", x), b.w(name)))
        weights = g.soft_max(g.concat(g.reshape(scores, count, tokens), current, 0))
        of_banked = g.cont(g.view(weights, (count, tokens), (weights.nb[1],)))
        of_current = g.cont(g.view(weights, (1, tokens), (weights.nb[1],)))
        out = Node("DSV4_HC_PRE", F32, (width, tokens, 1, 1), [banked, of_banked])
        return g.like("ADD", out, g.like("MUL", x, of_current))

    # -- branches -------------------------------------------------------------------------------------------------

    def output_gate(self, x: Node, prefix: str) -> Node:
        """In one step."""
        return self.g.mul_mat(self.b.w(f"{prefix}.ssm_g.weight"), self.flat(self.per_sequence(x)))

    def latent_attention(self, x: Node, il: int) -> Node:
        """Without rope, and gated."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        if b.has(f"{prefix}.attn_kv_b.weight"):
            raise UndescribedGraph("a file without the absorbed K and V projections")
        if b.has(f"{prefix}.attn_q_a_norm.weight"):
            low = b.norm(g.mul_mat(b.w(f"{prefix}.attn_q_a.weight"), x), f"{prefix}.attn_q_a_norm")
            q = g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), low)
        else:
            q = g.mul_mat(b.w(f"{prefix}.attn_q.weight"), x)
        out = self.latent(x, q, il, turned=False)
        if b.has(f"{prefix}.attn_gate.weight"):
            out = g.like("MUL", out, g.like("UNARY", g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), x)))
        return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), out)

    def feed_forward(self, x: Node, il: int) -> Node:
        """Dense, or experts in a narrower space beside shared ones in the model's own."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        if not b.has(f"{prefix}.ffn_gate_inp.weight"):
            return self.plain_ffn(x, prefix)
        down = b.maybe(f"{prefix}.ffn_routed_down.weight")
        narrow = x if down is None else g.mul_mat(down, x)
        out = self.experts_by(g.mul_mat(b.w(f"{prefix}.ffn_gate_inp.weight"), x), narrow, il)
        if b.has(f"{prefix}.ffn_routed_norm.weight"):
            out = b.norm(out, f"{prefix}.ffn_routed_norm")
        if down is not None:
            out = g.mul_mat(b.w(f"{prefix}.ffn_routed_up.weight"), out)
        if b.has(f"{prefix}.ffn_gate_shexp.weight"):
            out = g.like("ADD", out, self.plain_ffn(x, prefix, "_shexp"))
        return out

    # -- the head -------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """The last mix, the rows that are wanted, final norm and logits."""
        b, g = self.b, self.g
        x = b.norm(g.get_rows(self.mixed(x, "output_res_score.weight"), self.out_ids), "output_norm")
        x.is_output = True
        self.logits(x)
