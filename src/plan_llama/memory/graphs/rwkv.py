"""Graphs of RWKV 6 and 7, and of Qwen2 converted to them.

Mirrors src/models/rwkv6-base.cpp and rwkv7-base.cpp of llama.cpp b11434 and the models that build upon them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.recurrent import Recurrent


class Rwkv(Recurrent, ABC):
    """Time mixing with a matrix as state per head; the last token is kept as well (token shift)."""

    def attention_inputs(self) -> None:
        """build_rs_inp."""
        self.state_inputs()

    @abstractmethod
    def time_mix(self, x: Node, before: Node, il: int) -> Node:
        """What stands in for attention; `before` are the tokens before those of `x`."""

    # -- token shift --------------------------------------------------------------------------------------------------

    def shifted(self, x: Node, last: Node) -> Node:
        """The token before each: the kept one, and all but the last."""
        g = self.g
        return g.concat(last, g.view(x, (x.ne[0], x.ne[1] - 1, x.ne[2]), x.nb[1:3]), 1)

    def last_token(self, x: Node) -> Node:
        """The last token of each sequence."""
        return self.g.view(x, (x.ne[0], 1, x.ne[2]), x.nb[1:3])

    def load_shift(self, il: int) -> Node:
        """build_rwkv_token_shift_load: [width, kept tokens, sequences]."""
        width = self.spec.int_param("embedding_length")
        cache = self.conv_cache(il)
        return self.g.reshape(self.load_state(cache), width, cache.ne[0] // width, self.sequences)

    def store_shift(self, kept: Node, il: int) -> None:
        """build_rwkv_token_shift_store."""
        g, cache = self.g, self.conv_cache(il)
        count = cache.ne[0] * self.sequences
        g.expand(g.cpy(g.view(kept, (count,), ()), g.view(cache, (count,), ())))

    # -- what both generations do -------------------------------------------------------------------------------------

    def by_heads(self, x: Node) -> Node:
        """[width, tokens] by heads."""
        size = self.spec.int_param("wkv.head_size")
        return self.g.reshape(x, size, x.ne[0] // size, self.batch.tokens)

    def recurrence(self, op: str, sources: list[Node], il: int) -> Node:
        """The state is loaded, the op run over heads, the new state kept; the op's outputs, one row."""
        g = self.g
        cache = self.state_cache(il)
        state = self.load_state(cache)
        size, heads, tokens = sources[0].ne[:3]
        ne = (size * heads, tokens + size * self.sequences, 1, 1)
        made = Node(op, F32, ne, [*sources, state])
        count = cache.ne[0] * self.sequences
        g.expand(g.cpy(g.view(made, (count,), ()), g.view(cache, (count,), ())))
        return g.view(made, (size * heads * tokens,), ())

    def group_norm(self, x: Node, width: int, il: int) -> Node:
        """A norm over each head, where the file has it."""
        b, g, name, tokens = self.b, self.g, f"blk.{il}.time_mix_ln", self.batch.tokens
        if not b.has(f"{name}.weight"):
            return g.reshape(x, width, tokens)
        size = self.spec.int_param("wkv.head_size")
        x = g.reshape(g.like("NORM", g.reshape(x, size, width // size, tokens)), width, tokens)
        return g.like("ADD", g.like("MUL", x, b.w(f"{name}.weight")), b.w(f"{name}.bias"))

    def two_steps(self, x: Node, il: int, name: str, *, between: bool = False) -> Node:
        """A low-rank projection, with an activation between its halves if asked for."""
        b, g = self.b, self.g
        low = g.mul_mat(b.w(f"blk.{il}.time_mix_{name}1.weight"), x)
        return g.mul_mat(b.w(f"blk.{il}.time_mix_{name}2.weight"), g.like("UNARY", low) if between else low)

    # -- the layers ---------------------------------------------------------------------------------------------------

    def converted_block(self, x: Node, il: int, *, last: bool) -> Node:
        """The block of a transformer, with time mixing for attention."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        x = self.per_sequence(x)
        kept = self.load_shift(il)
        normed = b.norm(x, f"{prefix}.attn_norm")
        cur = self.time_mix(normed, self.shifted(normed, kept), il)
        self.store_shift(self.last_token(normed), il)
        x = g.reshape(g.like("ADD", cur, x), x.ne[0], tokens)
        if last:
            x = g.get_rows(x, self.out_ids)
        return g.like("ADD", b.ffn(b.norm(x, f"{prefix}.ffn_norm"), prefix), x)

    def mixing_block(self, x: Node, il: int, *, last: bool) -> Node:
        """Time mixing and channel mixing, each with a token shift."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        width = x.ne[0]
        x = self.per_sequence(x)
        kept = self.load_shift(il)
        for_time, for_channels = (g.view(kept, (width, 1, self.sequences), kept.nb[1:3]) for _ in range(2))
        normed = b.norm(x, f"{prefix}.attn_norm", op="NORM")
        cur = self.time_mix(normed, self.shifted(normed, for_time), il)
        x = g.like("ADD", cur, x)
        second = b.norm(x, f"{prefix}.attn_norm_2", op="NORM")
        before = self.shifted(second, for_channels)
        self.store_shift(g.concat(self.last_token(normed), self.last_token(second), 1), il)
        x, second, before = (g.reshape(part, width, tokens) for part in (x, second, before))
        if last:
            x, second, before = (g.get_rows(part, self.out_ids) for part in (x, second, before))
        return g.like("ADD", self.channel_mix(second, before, il), x)

    def channel_mix(self, x: Node, before: Node, il: int) -> Node:
        """What stands in for the feed-forward: squared relu, gated in RWKV 6."""
        b, g, prefix = self.b, self.g, f"blk.{il}.channel_mix"
        step = g.like("SUB", before, x)
        key = g.like("ADD", g.like("MUL", step, b.w(f"{prefix}_lerp_k.weight")), x)
        gate: Node | None = None
        if b.has(f"{prefix}_receptance.weight"):
            gate = g.like("ADD", g.like("MUL", step, b.w(f"{prefix}_lerp_r.weight")), x)
            gate = g.like("UNARY", b.mm(f"{prefix}_receptance", gate))
        out = b.mm(f"{prefix}_value", g.like("SQR", g.like("UNARY", b.mm(f"{prefix}_key", key))))
        return out if gate is None else g.like("MUL", gate, out)

    def mixing_inputs(self) -> Node:
        """Embeddings and the norm behind them."""
        return self.b.norm(super().inputs(), "token_embd_norm", op="NORM")

    def mixing_head(self, x: Node) -> None:
        """Final norm and logits."""
        x = self.b.norm(x, "output_norm", op="NORM")
        x.is_output = True
        self.logits(x)


class Rwkv6Qwen2(Rwkv):
    """Qwen2 with RWKV 6's time mixing (src/models/rwkv6qwen2.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Time mixing and a gated feed-forward."""
        return self.converted_block(x, il, last=last)

    def time_mix(self, x: Node, before: Node, il: int) -> Node:
        """build_rwkv6_time_mix."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}.time_mix", self.batch.tokens
        width = x.ne[0]
        step = g.reshape(g.like("SUB", before, x), width, tokens)
        x = g.reshape(x, width, tokens)
        w, k, v, r, gate = self.mixed_inputs(step, x, il)
        r, k, v = b.mm(f"{prefix}_receptance", r), b.mm(f"{prefix}_key", k), b.mm(f"{prefix}_value", v)
        gate = g.like("UNARY", b.mm(f"{prefix}_gate", gate))
        size = self.spec.int_param("wkv.head_size")
        heads, kv_heads = width // size, self.kv_heads(il)
        if kv_heads and kv_heads != heads:
            k, v = (
                g.repeat(g.reshape(x, size, 1, kv_heads, tokens), size, heads // kv_heads, kv_heads, tokens)
                for x in (k, v)
            )
        k, v, r = (g.reshape(part, size, heads, tokens) for part in (k, v, r))
        w = g.like("ADD", self.two_steps(w, il, "decay_w", between=True), b.w(f"{prefix}_decay.weight"))
        w = self.by_heads(g.like("UNARY", g.like("UNARY", g.like("UNARY", w))))
        first = b.maybe(f"{prefix}_first.weight")
        if first is None:
            k = g.like("SUB", k, g.like("MUL", k, w))
            out = g.reshape(self.recurrence("GATED_LINEAR_ATTN", [k, v, r, w], il), width, tokens)
        else:
            out = self.group_norm(self.recurrence("RWKV_WKV6", [k, v, r, first, w], il), width, il)
        return self.per_sequence(b.mm(f"{prefix}_output", g.like("MUL", out, gate)))

    def mixed_inputs(self, step: Node, x: Node, il: int) -> list[Node]:
        """A token and the one before it, mixed for decay, key, value, receptance and gate."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}.time_mix", self.batch.tokens
        width = x.ne[0]
        mixed = g.like("ADD", g.like("MUL", step, b.w(f"{prefix}_lerp_x.weight")), x)
        w1, w2 = b.w(f"{prefix}_w1.weight"), b.w(f"{prefix}_w2.weight")
        mixed = g.reshape(g.like("UNARY", g.mul_mat(w1, mixed)), w1.ne[1] // 5, 1, 5, tokens)
        mixed = g.cont(g.permute(mixed, 0, 1, 3, 2))
        mixed = g.mul_mat(g.reshape(w2, w2.ne[0], w2.ne[1], 1, 5), mixed)
        fused = b.maybe(f"{prefix}_lerp_fused.weight")
        if fused is not None:
            step, x = g.reshape(step, width, 1, tokens), g.reshape(x, width, 1, tokens)
            mixed = g.like("ADD", g.like("MUL", g.like("ADD", mixed, fused), step), x)
        parts = [g.view(mixed, (width, tokens), (mixed.nb[1],)) for _ in range(5)]
        if fused is not None:
            return parts
        return [
            g.like("ADD", g.like("MUL", g.like("ADD", part, b.w(f"{prefix}_lerp_{name}.weight")), step), x)
            for name, part in zip("wkvrg", parts, strict=True)
        ]


class Rwkv6(Rwkv6Qwen2):
    """Time and channel mixing (src/models/rwkv6.cpp)."""

    def inputs(self) -> Node:
        """Normed embeddings."""
        return self.mixing_inputs()

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Time and channel mixing."""
        return self.mixing_block(x, il, last=last)

    def head(self, x: Node) -> None:
        """Final norm and logits."""
        self.mixing_head(x)


class Arwkv7(Rwkv):
    """Qwen2 with RWKV 7's time mixing (src/models/arwkv7.cpp)."""

    first_value: Node | None = None

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Time mixing and a gated feed-forward."""
        return self.converted_block(x, il, last=last)

    def time_mix(self, x: Node, before: Node, il: int) -> Node:
        """build_rwkv7_time_mix; values are mixed with those of the first layer."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}.time_mix", self.batch.tokens
        width = x.ne[0]
        gated = b.has(f"{prefix}_g1.weight") and b.has(f"{prefix}_g2.weight")
        step = g.repeat(g.like("SUB", before, x), *x.ne[:3], 6 if gated else 5)
        mixed = g.like("ADD", g.like("MUL", step, b.w(f"{prefix}_lerp_fused.weight")), x)
        of_r, of_w, of_k, of_v, of_a, of_g = (
            g.view(mixed, (width, tokens), (mixed.nb[1],)) for _ in range(6)
        )
        r = b.mm(f"{prefix}_receptance", of_r)
        w = g.like("ADD", self.two_steps(of_w, il, "w", between=True), b.w(f"{prefix}_w0.weight"))
        w = g.like("UNARY", g.like("SCALE", g.like("UNARY", w)))
        k, v = b.mm(f"{prefix}_key", of_k), b.mm(f"{prefix}_value", of_v)
        if self.first_value is None:
            self.first_value = v
        else:
            share = g.like("ADD", self.two_steps(of_v, il, "v"), b.w(f"{prefix}_v0.weight"))
            other = g.like("MUL", g.like("SUB", self.first_value, v), g.like("UNARY", share))
            v = g.like("ADD", v, other)
        a = g.like("UNARY", g.like("ADD", self.two_steps(of_a, il, "a"), b.w(f"{prefix}_a0.weight")))
        unit = g.like("L2_NORM", self.by_heads(g.like("MUL", k, b.w(f"{prefix}_k_k.weight"))))
        scaled = g.like("MUL", k, b.w(f"{prefix}_k_a.weight"))
        k = g.like("ADD", k, g.like("SUB", g.like("MUL", a, scaled), scaled))
        r, w, k, v, a = (self.by_heads(part) for part in (r, w, k, v, a))
        sources = [r, w, k, v, g.like("UNARY", unit), g.like("MUL", unit, a)]
        out = self.group_norm(self.recurrence("RWKV_WKV7", sources, il), width, il)
        weights = g.reshape(b.w(f"{prefix}_r_k.weight"), k.ne[0], k.ne[1])
        bonus = g.sum_rows(g.like("MUL", g.like("MUL", k, r), weights))
        out = g.like("ADD", out, g.reshape(g.like("MUL", v, bonus), width, tokens))
        if gated:
            out = g.like("MUL", out, self.two_steps(of_g, il, "g", between=True))
        return self.per_sequence(b.mm(f"{prefix}_output", out))


class Rwkv7(Arwkv7):
    """Time and channel mixing (src/models/rwkv7.cpp)."""

    def inputs(self) -> Node:
        """Normed embeddings."""
        return self.mixing_inputs()

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Time and channel mixing."""
        return self.mixing_block(x, il, last=last)

    def head(self, x: Node) -> None:
        """Final norm and logits."""
        self.mixing_head(x)
