"""Graphs with state space layers: Mamba and Mamba-2, alone or beside attention.

Mirrors src/models/mamba-base.cpp of llama.cpp b11434 and the models that build upon it.
"""

from __future__ import annotations

from plan_llama.memory.experts import moe
from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.recurrent import Recurrent


class StateSpace(Recurrent):
    """What builds its recurrent layers with build_mamba_layer or build_mamba2_layer."""

    def scanned(self, cache: Node, shape: tuple[int, int, int], sources: tuple[Node, ...]) -> Node:
        """ggml_ssm_scan by way of build_rs: the outputs and, behind them, the new states, which are kept."""
        g = self.g

        def scan(states: Node, ids: Node) -> Node:
            return g.ssm_scan(g.reshape(states, *shape, states.ne[1]), *sources, ids)

        made = self.load_state(cache, scan)
        self.store_state(cache, g.view(made, (cache.ne[0], self.sequences), (cache.nb[1],)))
        return made

    def convolved(self, conv: Node, prefix: str) -> Node:
        """Convolution, bias, activation."""
        b, g = self.b, self.g
        x = g.ssm_conv(conv, b.w(f"{prefix}.ssm_conv1d.weight"))
        return g.like("UNARY", g.like("ADD", x, b.w(f"{prefix}.ssm_conv1d.bias")))

    def mamba2(self, x: Node, il: int) -> Node:
        """build_mamba2_layer."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        inner, state = self.spec.int_param("ssm.inner_size"), self.spec.int_param("ssm.state_size")
        heads, groups = self.spec.int_param("ssm.time_step_rank"), self.spec.int_param("ssm.group_count")
        head, mixed = inner // heads, inner + 2 * groups * state
        tokens, sequences = self.tokens_each, self.sequences
        conv_state = self.conv_state(b.w(f"{prefix}.ssm_conv1d.weight").ne[0] - 1, mixed, il)
        both = self.per_sequence(b.mm(f"{prefix}.ssm_in", x))
        z = g.view(both, (head, heads, tokens, sequences), (F32.nbytes(head), *both.nb[1:3]))
        dt = g.view(both, (heads, tokens, sequences), both.nb[1:3])
        conv = self.conv_step(conv_state, g.view(both, (mixed, tokens, sequences), both.nb[1:3]), il)
        mix = self.convolved(conv, prefix)
        x = g.view(mix, (head, heads, tokens, sequences), (F32.nbytes(head), *mix.nb[1:3]))
        written, read = (
            g.view(mix, (state, groups, tokens, sequences), (F32.nbytes(state), *mix.nb[1:3]))
            for _ in range(2)
        )
        dt = g.like("ADD", g.cont(dt), b.w(f"{prefix}.ssm_dt.bias"))
        sources = (x, dt, b.w(f"{prefix}.ssm_a"), written, read)
        made = self.scanned(self.state_cache(il), (state, head, heads), sources)
        row = F32.nbytes(head)
        y = g.view(made, (head, heads, tokens, sequences), (row, row * heads, row * heads * tokens))
        y = g.like("ADD", y, g.like("MUL", x, b.w(f"{prefix}.ssm_d")))
        y = g.glu(g.cont(z), y)
        if b.has(f"{prefix}.ssm_norm.weight"):
            y = b.norm(g.reshape(y, inner // groups, groups, tokens, sequences), f"{prefix}.ssm_norm")
        return b.mm(f"{prefix}.ssm_out", g.reshape(y, inner, tokens * sequences))

    def mamba1(self, x: Node, il: int) -> Node:
        """build_mamba_layer."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        inner, state = self.spec.int_param("ssm.inner_size"), self.spec.int_param("ssm.state_size")
        rank, tokens, sequences = self.spec.int_param("ssm.time_step_rank"), self.tokens_each, self.sequences
        conv_state = self.conv_state(b.w(f"{prefix}.ssm_conv1d.weight").ne[0] - 1, inner, il)
        both = b.mm(f"{prefix}.ssm_in", self.per_sequence(x))
        z = g.view(both, (inner, tokens, sequences), both.nb[1:3])
        conv = self.conv_step(conv_state, g.view(both, (inner, tokens, sequences), both.nb[1:3]), il)
        x = self.convolved(conv, prefix)
        parts = b.mm(f"{prefix}.ssm_x", x)
        dt = g.view(parts, (rank, tokens, sequences), parts.nb[1:3])
        written, read = (
            g.view(parts, (state, 1, tokens, sequences), (F32.nbytes(state), *parts.nb[1:3]))
            for _ in range(2)
        )
        if self.spec.hparams.get("ssm.dt_b_c_rms") or b.has(f"{prefix}.ssm_dt_norm.weight"):
            dt = b.norm(dt, f"{prefix}.ssm_dt_norm")
            written, read = b.norm(written, f"{prefix}.ssm_b_norm"), b.norm(read, f"{prefix}.ssm_c_norm")
        else:
            dt = g.cont(dt)
        dt = b.mm(f"{prefix}.ssm_dt", dt)
        sources = (g.reshape(x, 1, inner, tokens, sequences), dt, b.w(f"{prefix}.ssm_a"), written, read)
        made = self.scanned(self.state_cache(il), (state, 1, inner), sources)
        row = F32.nbytes(inner)
        y = g.view(made, (inner, tokens, sequences), (row, row * tokens))
        y = g.like("ADD", y, g.like("MUL", x, b.w(f"{prefix}.ssm_d")))
        return self.flat(b.mm(f"{prefix}.ssm_out", g.glu(g.cont(z), y)))

    def plain_attention(self, x: Node, il: int, *, turned: bool = False) -> Node:
        """build_qkv, rope if `turned`, build_attn."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        q = g.reshape(b.mm(f"{prefix}.attn_q", x), self.head_k(il), self.heads(il), tokens)
        k = g.reshape(b.mm(f"{prefix}.attn_k", x), self.head_k(il), self.kv_heads(il), tokens)
        v = g.reshape(b.mm(f"{prefix}.attn_v", x), self.head_v(il), self.kv_heads(il), tokens)
        if turned:
            q, k = b.rope(q, self.positions), b.rope(k, self.positions)
        return b.mm(f"{prefix}.attn_output", self.cached_attention(q, k, v, il))


class Mamba(StateSpace):
    """Nothing but state space layers (src/models/mamba.cpp)."""

    def attention_inputs(self) -> None:
        """build_rs_inp."""
        self.state_inputs()

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, layer, residual."""
        g = self.g
        cur = self.layer(self.b.norm(x, f"blk.{il}.attn_norm"), il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        return g.like("ADD", cur, x)

    def layer(self, x: Node, il: int) -> Node:
        """The state space layer."""
        return self.mamba1(x, il)


class Mamba2(Mamba):
    """As Mamba, with heads (src/models/mamba2.cpp)."""

    def layer(self, x: Node, il: int) -> Node:
        """The state space layer."""
        return self.mamba2(x, il)


class GraniteHybrid(StateSpace):
    """Granite 4: Mamba-2 or attention, then experts; branches are scaled (src/models/granite-hybrid.cpp)."""

    fixed_normalise = True

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, Mamba-2 or attention, residual, norm, feed-forward, residual."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = b.norm(x, f"{prefix}.attn_norm")
        if il in self.recurrent:
            cur = self.mamba2(cur, il)
        else:
            turned = bool(self.spec.hparams.get("rope.scaling.finetuned", True))
            cur = self.plain_attention(cur, il, turned=turned)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        x = g.like("ADD", self.scaled(cur), x)
        cur = self.feed_forward(b.norm(x, f"{prefix}.ffn_norm"), il)
        return g.like("ADD", self.scaled(cur), x)

    def scaled(self, x: Node) -> Node:
        """A branch, scaled where the header says so."""
        return self.g.like("SCALE", x) if self.spec.hparams.get("residual_scale") else x


class NemotronH(StateSpace):
    """One of Mamba-2, attention and feed-forward per layer (src/models/nemotron-h.cpp, nemotron-h-moe.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - the wanted rows are picked late
        """Norm, one of three kinds of layer, residual."""
        b, prefix = self.b, f"blk.{il}"
        cur = b.norm(x, f"{prefix}.attn_norm")
        if il in self.recurrent:
            cur = self.mamba2(cur, il)
        elif b.has(f"{prefix}.attn_q.weight"):
            cur = self.plain_attention(cur, il)
        else:
            cur = self.feed_forward(cur, il)
        return self.g.like("ADD", cur, x)

    def experts_of(self, x: Node, il: int) -> Node:
        """Experts that may work in a smaller space than the router."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        inner = x
        if b.has(f"{prefix}.ffn_latent_down.weight"):
            inner = g.mul_mat(b.w(f"{prefix}.ffn_latent_down.weight"), x)
        out = moe(
            b,
            inner,
            prefix,
            used=self.spec.int_param("expert_used_count", layer=il),
            gating="sigmoid",
            normalise=bool(self.spec.hparams.get("expert_weights_norm", False)),
            scale=self.spec.hparams.get("expert_weights_scale", 0.0) not in (0, 1),
            logits=b.mm(f"{prefix}.ffn_gate_inp", x),
        )
        if b.has(f"{prefix}.ffn_latent_up.weight"):
            out = g.mul_mat(b.w(f"{prefix}.ffn_latent_up.weight"), out)
        return out

    def head(self, x: Node) -> None:
        """As the delta nets': the normed state of every token stays for a draft block."""
        self.seeded_head(x)


class FalconH1(StateSpace):
    """Attention and Mamba-2 side by side in every layer (src/models/falcon-h1.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Both branches from the same input, their sum, feed-forward."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        attended = self.plain_attention(b.norm(x, f"{prefix}.attn_norm"), il, turned=True)
        scanned = self.mamba2(b.norm(x, f"{prefix}.attn_norm"), il)
        x = g.like("ADD", g.like("ADD", attended, scanned), x)
        if last:
            x = g.get_rows(x, self.out_ids)
        return g.like("ADD", b.ffn(b.norm(x, f"{prefix}.ffn_norm"), prefix), x)


class Jamba(StateSpace):
    """Mamba or attention without rope, then experts in every second layer (src/models/jamba.cpp)."""

    fixed_normalise = False

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, layer, residual, norm, feed-forward, residual."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = b.norm(x, f"{prefix}.attn_norm")
        cur = self.mamba1(cur, il) if il in self.recurrent else self.plain_attention(cur, il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        x = g.like("ADD", x, cur)
        cur = self.feed_forward(b.norm(x, f"{prefix}.ffn_norm"), il)
        return g.like("ADD", x, cur)


class Plamo2(StateSpace):
    """Mamba with heads and normed parameters, or attention; norms on both sides (src/models/plamo2.cpp)."""

    def bare_norm(self, x: Node, name: str) -> Node:
        """build_norm with a tensor that is named without a suffix."""
        return self.g.like("MUL", self.g.like("RMS_NORM", x), self.b.w(name))

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, mixer, norm, residual, and the same around the feed-forward."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = b.norm(x, f"{prefix}.attn_norm")
        cur = self.scan_of(cur, il) if il in self.recurrent else self.attention_of(cur, il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        x = g.like("ADD", self.bare_norm(cur, f"{prefix}.post_attention_norm"), x)
        cur = b.ffn(b.norm(x, f"{prefix}.ffn_norm"), prefix)
        return g.like("ADD", self.bare_norm(cur, f"{prefix}.post_ffw_norm"), x)

    def scan_of(self, x: Node, il: int) -> Node:
        """build_plamo2_mamba_layer."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        inner, state = self.spec.int_param("ssm.inner_size"), self.spec.int_param("ssm.state_size")
        heads, tokens, sequences = self.spec.int_param("ssm.time_step_rank"), self.tokens_each, self.sequences
        head = inner // heads
        kernel = b.w(f"{prefix}.ssm_conv1d.weight")
        conv_state = self.conv_state(kernel.ne[0] - 1, inner, il)
        both = g.permute(b.mm(f"{prefix}.ssm_in", self.per_sequence(x)), 0, 2, 1, 3)
        both = g.cont(both, 2 * head, heads, tokens, sequences)
        x, z = (g.view(both, (head, heads, tokens, sequences), both.nb[1:]) for _ in range(2))
        conv = self.conv_step(conv_state, g.cont(x, inner, tokens, sequences), il)
        x = g.like("UNARY", g.ssm_conv(conv, kernel))
        parts = b.mm(f"{prefix}.ssm_x", x)
        rank = parts.ne[0] - 2 * state
        written, read, dt = (
            self.bare_norm(
                g.view(parts, (size, tokens, sequences), parts.nb[1:3]), f"{prefix}.ssm_{name}_norm"
            )
            for name, size in (("b", state), ("c", state), ("dt", rank))
        )
        dt = b.mm(f"{prefix}.ssm_dt", dt)
        row, all_heads = F32.nbytes(head), F32.nbytes(inner)
        x = g.view(x, (head, heads, tokens, sequences), (row, all_heads, all_heads * tokens))
        written, read = (
            g.view(part, (state, 1, tokens, sequences), (F32.nbytes(state), *part.nb[1:3]))
            for part in (written, read)
        )
        sources = (x, dt, g.reshape(b.w(f"{prefix}.ssm_a"), 1, heads), written, read)
        made = self.scanned(self.state_cache(il), (state, head, heads), sources)
        y = g.view(made, (head, heads, tokens, sequences), (row, all_heads, all_heads * tokens))
        y = g.like("ADD", y, g.like("MUL", x, g.reshape(b.w(f"{prefix}.ssm_d"), 1, heads)))
        y = g.glu(g.cont(z), y)
        y = g.view(y, (inner, tokens, sequences), (y.nb[2], y.nb[3]))
        return self.flat(b.mm(f"{prefix}.ssm_out", y))
