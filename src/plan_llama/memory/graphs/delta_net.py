"""Graphs with gated delta nets: Qwen3-Next and Qwen3.5.

Mirrors src/models/delta-net-base.cpp, qwen3next.cpp, qwen35.cpp and qwen35moe.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.recurrent import Recurrent


class DeltaNet(Recurrent):
    """Layers with a gated delta net, and layers whose attention is gated (src/models/qwen35.cpp, qwen35moe.cpp)."""

    late_rows = True
    fixed_normalise: bool | None = True

    def drafting(self) -> type[Decoder]:
        """The block for drafting keeps no state."""
        return Drafting

    # -- attention ------------------------------------------------------------------------------------------------

    def attention_of(self, x: Node, il: int) -> Node:
        """A delta net or gated attention."""
        self.g.expand(x)
        return self.linear(x, il) if il in self.recurrent else self.gated_attention(x, il)

    def gated_attention(self, x: Node, il: int) -> Node:
        """build_layer_attn: queries and gates in one matrix, head by head."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        tokens, heads, kv_heads, head = self.batch.tokens, self.heads(il), self.kv_heads(il), self.head_k(il)
        both = b.mm(f"{prefix}.attn_q", x)
        parts = (F32.nbytes(2 * head), F32.nbytes(2 * head * heads))
        q = b.norm(g.view(both, (head, heads, tokens), parts), f"{prefix}.attn_q_norm")
        k = g.reshape(b.mm(f"{prefix}.attn_k", x), head, kv_heads, tokens)
        k = b.norm(k, f"{prefix}.attn_k_norm")
        v = g.reshape(b.mm(f"{prefix}.attn_v", x), head, kv_heads, tokens)
        q, k = b.rope(q, self.positions), b.rope(k, self.positions)
        out = self.cached_attention(q, k, v, il)
        gate = g.cont(g.view(both, (head, heads, tokens), parts), head * heads, tokens)
        out = g.like("MUL", out, g.like("UNARY", gate))
        return b.mm(f"{prefix}.attn_output", out)

    # -- the delta net ----------------------------------------------------------------------------------------------

    def linear(self, x: Node, il: int) -> Node:
        """build_layer_attn_linear: projections, a short convolution, the recurrence, a gated norm."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        k_heads, v_heads = self.spec.int_param("ssm.group_count"), self.spec.int_param("ssm.time_step_rank")
        head_k = self.spec.int_param("ssm.state_size")
        head_v = self.spec.int_param("ssm.inner_size") // v_heads
        tokens, sequences = self.tokens_each, self.sequences
        mixed, z = self.projected(x, prefix)
        beta, gate = self.beta_and_gate(x, prefix, v_heads)
        kernel = b.w(f"{prefix}.ssm_conv1d.weight")
        conv = self.conv_step(self.conv_state(kernel.ne[0] - 1, mixed.ne[0], il), mixed, il)
        cache = self.state_cache(il)
        state = g.reshape(self.load_state(cache), head_v, head_v, v_heads, sequences)
        mixed = g.like("UNARY", g.ssm_conv(conv, kernel))
        row = F32.nbytes(2 * head_k * k_heads + head_v * v_heads)
        q, k, v = (
            g.view(mixed, (size, heads, tokens, sequences), (F32.nbytes(size), row, row * tokens))
            for size, heads in ((head_k, k_heads), (head_k, k_heads), (head_v, v_heads))
        )
        q, k = self.unit(q), self.unit(k)
        if k_heads != v_heads:
            q, k = self.for_value_heads(q, v_heads), self.for_value_heads(k, v_heads)
        out = self.recurrence(cache, q, k, v, gate, beta, state)
        out = self.gated_norm(out, f"{prefix}.ssm_norm", g.reshape(z, head_v, v_heads, tokens, sequences))
        out = b.mm(f"{prefix}.ssm_out", g.reshape(out, head_v * v_heads, tokens, sequences))
        return self.flat(out)

    def projected(self, x: Node, prefix: str) -> tuple[Node, Node]:
        """build_qkvz: what the convolution mixes, and the gate of the output."""
        b = self.b
        return self.per_sequence(b.mm(f"{prefix}.attn_qkv", x)), b.mm(f"{prefix}.attn_gate", x)

    def beta_and_gate(self, x: Node, prefix: str, heads: int) -> tuple[Node, Node]:
        """How much a token writes and how much it forgets, per head."""
        b, g, tokens, sequences = self.b, self.g, self.tokens_each, self.sequences
        beta = g.reshape(b.mm(f"{prefix}.ssm_beta", x), 1, heads, tokens, sequences)
        beta = g.like("UNARY", beta)
        alpha = g.reshape(b.mm(f"{prefix}.ssm_alpha", x), heads, tokens, sequences)
        return beta, self.decay(alpha, prefix, heads)

    def decay(self, alpha: Node, prefix: str, heads: int) -> Node:
        """The gate from alpha: bias, softplus, times A."""
        b, g = self.b, self.g
        alpha = g.like("UNARY", g.like("ADD", alpha, b.w(f"{prefix}.ssm_dt.bias")))
        gate = g.like("MUL", alpha, b.w(f"{prefix}.ssm_a"))
        return g.reshape(gate, 1, heads, self.tokens_each, self.sequences)

    def unit(self, x: Node) -> Node:
        """build_gdn_l2_norm."""
        return self.g.like("SCALE", self.g.like("RMS_NORM", x))

    def for_value_heads(self, x: Node, heads: int) -> Node:  # noqa: ARG002 - for those that repeat
        """Key heads for value heads: the op repeats them by itself."""
        return x

    def recurrence(self, cache: Node, q: Node, k: Node, v: Node, gate: Node, beta: Node, state: Node) -> Node:
        """build_recurrent_attn: one op on any device (llama_context sets fused_gdn_* and does not look whether each
        runs where its layer does); the new states are kept.
        """
        g = self.g
        size, heads, tokens, sequences = v.ne
        made = g.gated_delta_net(q, k, v, gate, beta, state, self.kept)
        row, head = F32.nbytes(size), F32.nbytes(size * heads)
        if self.kept == 1:
            new = g.view(made, (size, size, heads, sequences), (row, row * size, row * size * heads))
            self.store_state(cache, new)
        else:  # a view of as many rows as the batch has tokens for
            shape = (row * size * heads, row * size * heads * sequences)
            new = g.view(made, (size * size * heads, sequences, min(tokens, self.kept)), shape)
            g.expand(g.cpy(new, g.view(cache, new.ne[:3], (cache.nb[1], cache.nb[1] * sequences))))
        return g.view(made, (size, heads, tokens, sequences), (row, head, head * tokens))

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """With the normed states that a draft block starts from."""
        self.seeded_head(x)


class Drafting(DeltaNet):
    """The block for drafting: gated attention over a plain cache (graph_mtp in src/models/qwen35.cpp)."""

    def attention_inputs(self) -> None:
        """build_attn_inp_kv."""
        Decoder.attention_inputs(self)

    def attention_of(self, x: Node, il: int) -> Node:
        """Gated attention."""
        return self.gated_attention(x, il)


class Qwen3Next(DeltaNet):
    """As Qwen3.5, with fused projections of its own layout (src/models/qwen3next.cpp)."""

    def projected(self, x: Node, prefix: str) -> tuple[Node, Node]:
        """build_qkvz; older files have one matrix, interleaved per key head."""
        b, g = self.b, self.g
        if b.has(f"{prefix}.attn_qkv.weight"):
            return super().projected(x, prefix)
        k_heads, head_k = self.spec.int_param("ssm.group_count"), self.spec.int_param("ssm.state_size")
        value = self.spec.int_param("ssm.inner_size") // k_heads
        tokens, sequences = self.tokens_each, self.sequences
        both = g.reshape(b.mm(f"{prefix}.ssm_in", x), 2 * head_k + 2 * value, k_heads, tokens, sequences)
        q, k, v, z = (
            g.view(both, (size, k_heads, tokens, sequences), both.nb[1:])
            for size in (head_k, head_k, value, value)
        )
        q, k, v = (g.cont(part, part.ne[0] * k_heads, tokens, sequences) for part in (q, k, v))
        return g.concat(g.concat(q, k, 0), v, 0), g.cont(z)

    def beta_and_gate(self, x: Node, prefix: str, heads: int) -> tuple[Node, Node]:
        """Both in one matrix, interleaved per key head."""
        b, g, tokens, sequences = self.b, self.g, self.tokens_each, self.sequences
        k_heads = self.spec.int_param("ssm.group_count")
        each = heads // k_heads
        both = g.reshape(b.mm(f"{prefix}.ssm_ba", x), 2 * each, k_heads, tokens, sequences)
        beta, alpha = (g.view(both, (each, k_heads, tokens, sequences), both.nb[1:]) for _ in range(2))
        beta = g.like("UNARY", g.cont(beta))
        gate = self.decay(g.cont(alpha, heads, tokens, sequences), prefix, heads)
        return g.reshape(beta, 1, heads, tokens, sequences), gate

    def for_value_heads(self, x: Node, heads: int) -> Node:
        """Repeated, and interleaved."""
        g = self.g
        size, k_heads, tokens, sequences = x.ne
        x = g.reshape(x, size, 1, k_heads, tokens * sequences)
        x = g.repeat(x, size, heads // k_heads, k_heads, tokens * sequences)
        return g.reshape(x, size, heads, tokens, sequences)
