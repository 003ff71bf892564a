"""Several residual streams that a layer's branches are narrowed from and spread over again (mHC).

Mirrors build_hc_pre and build_hc_post of src/models/deepseek4.cpp and glm5-next.cpp, llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.decoder import Decoder


class HyperConnected(Decoder):
    """A decoder with `streams` residual streams: [width, streams, tokens]."""

    streams: int

    def narrowed(self, x: Node, prefix: str) -> tuple[Node, Node, Node]:
        """build_hc_pre: one stream of the several, and what build_hc_post needs to spread a branch again."""
        b, g, n = self.b, self.g, self.streams
        tokens = x.ne[2]
        flat = g.like("RMS_NORM", g.reshape(x, x.ne[0] * n, tokens))
        mixes = g.mul_mat(b.w(f"{prefix}_fn.weight"), flat)
        scale, base = b.w(f"{prefix}_scale.weight"), b.w(f"{prefix}_base.weight")
        parts = []
        for _ in range(2):
            part = g.view(mixes, (n, tokens), (mixes.nb[1],))
            part = g.like("MUL", part, g.view(scale, (1,), ()))
            part = g.like("ADD", part, g.view(base, (n,), ()))
            parts.append(g.like("SCALE", g.like("UNARY", part)))
        comb = Node("DSV4_HC_COMB", F32, (n, n, tokens, 1), [mixes, scale, base])
        out = Node("DSV4_HC_PRE", F32, (x.ne[0], tokens, 1, 1), [x, parts[0]])
        return out, parts[1], comb

    def spread(self, x: Node, residual: Node, post: Node, comb: Node) -> Node:
        """build_hc_post: one op, unless the engine has given it up (memory/probe.py)."""
        width, tokens, n = x.ne[0], x.ne[1], self.streams
        if not self.batch.plain_spread:
            return Node("DSV4_HC_POST", F32, (width, n, tokens, 1), [x, residual, post, comb])
        g = self.g
        streams: list[Node] = []
        for _ in range(n):
            cur = g.like("MUL", x, g.view(post, (1, tokens), (post.nb[1],)))
            for _ in range(n):
                part = g.view(residual, (width, tokens), (residual.nb[2],))
                cur = g.like("ADD", cur, g.like("MUL", part, g.view(comb, (1, tokens), (comb.nb[2],))))
            streams.append(g.reshape(cur, width, 1, tokens))
        out = streams[0]
        for stream in streams[1:]:
            out = g.concat(out, stream, 1)
        return out
