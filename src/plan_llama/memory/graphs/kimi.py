"""Graphs with Kimi delta attention (KDA) beside latent attention.

Mirrors src/models/kimi-linear.cpp and bailingmoe3.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.blocks import UndescribedGraph
from plan_llama.memory.ggml import F32, I64, Node
from plan_llama.memory.graphs.delta_net import DeltaNet


class KimiLinear(DeltaNet):
    """Delta nets with a gate per channel, and latent attention without rope (src/models/kimi-linear.cpp)."""

    late_rows = False

    def attention_inputs(self) -> None:
        """build_inp_mem_hybrid_k."""
        if not self.spec.int_param("attention.key_length_mla", 0):
            raise UndescribedGraph("an older file without the absorbed K and V projections")
        self.rows_k = self.g.input(I64, self.batch.tokens)
        self.mask = self.b.mask(self.batch.cells)
        self.state_inputs()

    def attention_of(self, x: Node, il: int) -> Node:
        """KDA or latent attention."""
        self.g.expand(x)
        return self.delta_attention(x, il) if il in self.recurrent else self.latent_attention(x, il)

    # -- KDA --------------------------------------------------------------------------------------------------------

    def delta_attention(self, x: Node, il: int) -> Node:
        """Three convolutions, a gate per channel, the recurrence, a gated norm."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        heads, head = self.heads(0), self.spec.int_param("kda.head_dim")
        tokens, sequences = self.tokens_each, self.sequences
        states = self.load_state(self.conv_cache(il))
        q, k, v = (self.convolved(part, states, (head, heads), il) for part in self.parts(x, il))
        gate = g.reshape(self.channel_gate(x, prefix, head, heads), head, heads, tokens, sequences)
        beta = g.mul_mat(b.w(f"{prefix}.ssm_beta.weight"), x)
        beta = g.like("UNARY", g.reshape(beta, 1, heads, tokens, sequences))
        cache = self.state_cache(il)
        state = g.reshape(self.load_state(cache), head, head, heads, sequences)
        out = g.cont(self.recurrence(cache, self.unit(q), self.unit(k), v, gate, beta, state))
        out = b.norm(g.reshape(out, head, heads, tokens * sequences), f"{prefix}.ssm_norm")
        opened = g.like("UNARY", g.reshape(self.output_gate(x, prefix), head, heads, tokens * sequences))
        out = g.cont(g.like("MUL", out, opened), head * heads, tokens * sequences)
        return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), out)

    def parts(self, x: Node, il: int) -> list[tuple[str, Node]]:
        """Which convolution works on what: queries, keys, values."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        if not b.has(f"{prefix}.attn_qkv.weight"):
            return [(name, g.mul_mat(b.w(f"{prefix}.attn_{name}.weight"), x)) for name in "qkv"]
        both = g.mul_mat(b.w(f"{prefix}.attn_qkv.weight"), x)
        return [(name, g.cont(g.view(both, (both.ne[0] // 3, both.ne[1]), (both.nb[1],)))) for name in "qkv"]

    def convolved(self, part: tuple[str, Node], states: Node, shape: tuple[int, int], il: int) -> Node:
        """causal_conv1d: one of three convolutions whose last inputs lie in one row."""
        g = self.g
        name, x = part
        kernel = self.b.w(f"blk.{il}.ssm_conv1d_{name}.weight")
        size, width = kernel.ne[0] - 1, shape[0] * shape[1]
        cache = self.conv_cache(il)
        strides = (F32.nbytes(size), cache.nb[1])
        before = g.view(states, (size, width, self.sequences), strides)
        conv = g.concat(before, g.transpose(self.per_sequence(x)), 0)
        last = g.view(conv, (size, width, self.sequences), conv.nb[1:3])
        for _ in range(self.kept):
            g.expand(g.cpy(last, g.view(cache, (size, width, self.sequences), strides)))
        out = g.ssm_conv(conv, g.reshape(kernel, kernel.ne[0], width))
        out = g.like("UNARY", g.reshape(out, width, self.batch.tokens))
        return g.reshape(out, *shape, self.tokens_each, self.sequences)

    def channel_gate(self, x: Node, prefix: str, head: int, heads: int) -> Node:
        """How much every channel forgets."""
        b, g = self.b, self.g
        low = g.mul_mat(b.w(f"{prefix}.ssm_f_a.weight"), x)
        gate = g.like("ADD", g.mul_mat(b.w(f"{prefix}.ssm_f_b.weight"), low), b.w(f"{prefix}.ssm_dt.bias"))
        gate = g.reshape(g.like("UNARY", gate), head, heads, self.batch.tokens)
        return g.like("MUL", gate, g.reshape(b.w(f"{prefix}.ssm_a"), 1, heads, 1))

    def output_gate(self, x: Node, prefix: str) -> Node:
        """The gate of what attention gives."""
        b, g = self.b, self.g
        low = g.mul_mat(b.w(f"{prefix}.ssm_g_a.weight"), x)
        return g.mul_mat(b.w(f"{prefix}.ssm_g_b.weight"), low)

    # -- latent attention -----------------------------------------------------------------------------------------

    def latent_attention(self, x: Node, il: int) -> Node:
        """Multi-head latent attention over a K-only cache."""
        b, prefix = self.b, f"blk.{il}"
        return b.mm(f"{prefix}.attn_output", self.latent(x, b.mm(f"{prefix}.attn_q", x), il, turned=False))

    def latent(self, x: Node, q: Node, il: int, *, turned: bool) -> Node:
        """Query and key in latent form, and attention; with rope if `turned`."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}"
        tokens, heads = batch.tokens, self.heads(0)
        latent, rope = (
            self.spec.int_param("attention.kv_lora_rank"),
            self.spec.int_param("rope.dimension_count"),
        )
        head = self.spec.int_param("attention.key_length_mla")
        strides = (F32.nbytes(head), F32.nbytes(head * heads))
        q_nope, q_pe = (
            g.view(q, (head - rope, heads, tokens), strides),
            g.view(q, (rope, heads, tokens), strides),
        )
        compressed = g.mul_mat(b.w(f"{prefix}.attn_kv_a_mqa.weight"), x)
        row = F32.nbytes(latent + rope)
        kv, k_pe = (
            g.view(compressed, (latent, tokens), (row,)),
            g.view(compressed, (rope, 1, tokens), (row, row)),
        )
        if turned:
            q_pe, k_pe = b.rope(q_pe, self.positions), b.rope(k_pe, self.positions)
        kv = b.norm(kv, f"{prefix}.attn_kv_a_norm")
        absorbed = g.mul_mat(b.w(f"{prefix}.attn_k_b.weight"), g.permute(q_nope, 0, 2, 1, 3))
        query = g.concat(g.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
        kv = g.reshape(kv, latent, 1, tokens)
        key = g.concat(kv, k_pe, 0)
        g.expand(query, kv, key)
        cache = b.cache("k", batch.kv_type_k, latent + rope, batch.cells, il)
        b.store(cache, key, self.rows_k)
        k = b.read_k(cache, latent + rope, 1, batch.cells)
        values = g.view(k, (latent, *k.ne[1:]), k.nb[1:])
        return b.attention(query, k, values, self.mask, v_mla=b.w(f"{prefix}.attn_v_b.weight"))

    def head(self, x: Node) -> None:
        """Final norm and logits."""
        x = self.b.norm(x, "output_norm")
        x.is_output = True
        self.logits(x)


class BailingMoe3(KimiLinear):
    """As Kimi Linear, with rope, gated latent attention and other gates (src/models/bailingmoe3.cpp)."""

    late_rows = True
    fixed_normalise = None
    default_normalise = False

    def attention_of(self, x: Node, il: int) -> Node:
        """KDA or latent attention."""
        return self.delta_attention(x, il) if il in self.recurrent else self.latent_attention(x, il)

    def channel_gate(self, x: Node, prefix: str, head: int, heads: int) -> Node:
        """In one step, and bounded."""
        b, g = self.b, self.g
        gate = g.like("ADD", g.mul_mat(b.w(f"{prefix}.ssm_f_a.weight"), x), b.w(f"{prefix}.ssm_dt.bias"))
        gate = g.reshape(gate, head, heads, self.batch.tokens)
        gate = g.like("MUL", gate, g.reshape(b.w(f"{prefix}.ssm_a"), 1, heads, 1))
        return g.like("SCALE", g.like("UNARY", gate))

    def output_gate(self, x: Node, prefix: str) -> Node:
        """In one step."""
        return self.g.mul_mat(self.b.w(f"{prefix}.ssm_g_a.weight"), x)

    def latent_attention(self, x: Node, il: int) -> Node:
        """A gate per head behind attention."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        if b.has(f"{prefix}.attn_q_a.weight"):
            q = b.norm(g.mul_mat(b.w(f"{prefix}.attn_q_a.weight"), x), f"{prefix}.attn_q_a_norm")
            q = g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), q)
        else:
            q = g.mul_mat(b.w(f"{prefix}.attn_q.weight"), x)
        out = self.latent(x, q, il, turned=True)
        tokens, heads = self.batch.tokens, self.heads(0)
        gate = g.like("UNARY", g.reshape(g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), x), 1, heads, tokens))
        out = g.like("MUL", g.reshape(out, out.ne[0] // heads, heads, tokens), gate)
        out = g.cont(out, out.ne[0] * heads, tokens)
        return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), out)

    def head(self, x: Node) -> None:
        """With the normed states that a draft block starts from."""
        self.seeded_head(x)
