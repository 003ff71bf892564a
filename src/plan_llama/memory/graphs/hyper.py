"""HY 4: hyper-connections around latent attention over the cells that an indexer selects.

Mirrors src/models/hy-v4.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Sequence

from plan_llama.memory.blocks import UndescribedGraph
from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.latent import GlmDsa, Latent


class HyV4(GlmDsa):
    """The residual is several streams; each branch reads a mixture of them and is spread over all."""

    late_rows = True
    default_normalise = False
    rotates_index = False

    def drafting(self) -> type[Decoder]:
        """The engine has no block for drafting here."""
        raise UndescribedGraph("a block for drafting of HY 4")

    def inputs(self) -> Node:
        """The token rows, once per stream."""
        self.streams = self.spec.int_param("hyper_connection.count")
        if self.streams < 1:
            raise UndescribedGraph("hyper_connection.count")
        x = super().inputs()
        width, tokens = x.ne[0], self.batch.tokens
        return self.g.repeat(self.g.reshape(x, width, 1, tokens), width, self.streams, tokens, 1)

    def attention_inputs(self) -> None:
        """build_attn_inp_k_dsa, or build_attn_inp_k for a model without indexers."""
        self.selects = bool(self.spec.int_param("attention.indexer.top_k", 0))
        if self.selects:
            super().attention_inputs()
        else:
            Latent.attention_inputs(self)

    def mask_for(self, il: int) -> Node:
        """Open for the selected cells, or for all."""
        return super().mask_for(il) if self.selects else self.mask

    # -- hyper-connections ------------------------------------------------------------------------------------------

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked in the head
        """Attention and feed-forward, each between narrowing and spreading."""
        b, prefix = self.b, f"blk.{il}"
        cur, post = self.narrowed(x, f"{prefix}.hc_attn")
        cur = self.attention_of(b.norm(cur, f"{prefix}.attn_norm"), il)
        x = self.spread(cur, x, post)
        cur, post = self.narrowed(x, f"{prefix}.hc_ffn")
        cur = self.feed_forward(b.norm(cur, f"{prefix}.ffn_norm"), il)
        return self.spread(cur, x, post)

    def narrowed(self, x: Node, prefix: str) -> tuple[Node, Node]:
        """build_hc_pre: one stream of the several, and the weights by which a branch is spread."""
        b, g, n = self.b, self.g, self.streams
        mixes = self._mixes(x, f"{prefix}_fn.weight")
        scale, base = b.w(f"{prefix}_scale.weight"), b.w(f"{prefix}_base.weight")
        parts = []
        for scalings in (1, 2):
            part = g.view(mixes, (n, x.ne[2]), (mixes.nb[1],))
            part = g.like("MUL", part, g.view(scale, (1,), ()))
            part = g.like("UNARY", g.like("ADD", part, g.view(base, (n,), ())))
            for _ in range(scalings):
                part = g.like("SCALE", part)
            parts.append(part)
        return self._reduced(x, parts[0]), parts[1]

    def _mixes(self, x: Node, name: str) -> Node:
        flat = self.g.reshape(x, x.ne[0] * self.streams, x.ne[2])
        return self.g.mul_mat(self.b.w(name), self.g.like("RMS_NORM", flat))

    def _reduced(self, x: Node, weights: Node) -> Node:
        """hy_v4_hc_reduce: the sum of the streams by weight."""
        g = self.g
        x = g.cast(x, F32)
        parts = []
        for _ in range(self.streams):
            stream = g.view(x, (x.ne[0], x.ne[2]), (x.nb[2],))
            parts.append(g.like("MUL", stream, g.view(weights, (1, x.ne[2]), (weights.nb[1],))))
        return g.cast(self._sum(parts), F32)

    def _sum(self, parts: Sequence[Node]) -> Node:
        total = parts[0]
        for part in parts[1:]:
            total = self.g.like("ADD", total, part)
        return total

    def spread(self, x: Node, residual: Node, post: Node) -> Node:
        """build_hc_post: the branch is added to every stream by its weight."""
        g, width, tokens = self.g, x.ne[0], x.ne[1]
        x, post, residual = (g.cast(node, F32) for node in (x, post, residual))
        out: Node | None = None
        for _ in range(self.streams):
            stream = g.view(residual, (width, tokens), (residual.nb[2],))
            weight = g.view(post, (1, tokens), (post.nb[1],))
            part = g.reshape(g.like("ADD", stream, g.like("MUL", x, weight)), width, 1, tokens)
            out = part if out is None else g.concat(out, part, 1)
        assert out is not None, "hyper_connection.count"  # noqa: S101 - inputs() looked
        return g.cast(out, F32)

    # -- branches -------------------------------------------------------------------------------------------------

    def behind_attention(self, out: Node, x: Node, il: int) -> Node:
        """A gate for every element, then the projection; without the scales that a file may have beside them."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        gate = g.like("UNARY", g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), x))
        return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), g.like("MUL", out, gate))

    def feed_forward(self, x: Node, il: int) -> Node:
        """The dense branch, or the experts with the shared ones beside them; no scales here either."""
        prefix = f"blk.{il}"
        if not self.b.has(f"{prefix}.ffn_gate_inp.weight"):
            return self._gated(x, prefix, "")
        return self.g.like("ADD", self.experts_of(x, il), self._gated(x, prefix, "_shexp"))

    def _gated(self, x: Node, prefix: str, suffix: str) -> Node:
        b, g = self.b, self.g
        up, gate, down = (b.w(f"{prefix}.ffn_{part}{suffix}.weight") for part in ("up", "gate", "down"))
        wide = g.mul_mat(up, x)
        return g.mul_mat(down, g.glu(g.mul_mat(gate, x), wide))

    # -- the head ---------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """The wanted rows of all streams, narrowed by weights of their own."""
        b, g, n, width = self.b, self.g, self.streams, x.ne[0]
        rows = g.get_rows(g.reshape(x, width * n, x.ne[2]), self.out_ids)
        x = g.reshape(rows, width, n, rows.ne[1])
        mixes = self._mixes(x, "output_hc_fn.weight")
        mixes = g.like("MUL", mixes, b.w("output_hc_scale.weight"))
        mixes = g.like("SCALE", g.like("UNARY", g.like("ADD", mixes, b.w("output_hc_base.weight"))))
        x = b.norm(self._reduced(x, mixes), "output_norm")
        x.is_output = True
        self.logits(x)
