"""The graph of MiniMax-Text-01: lightning attention, every eighth layer softmax attention."""

from __future__ import annotations

from plan_llama.memory.ggml import F32, Node
from plan_llama.memory.graphs.recurrent import Recurrent
from plan_llama.memory.recurrent import state_elements


class MiniMax01(Recurrent):
    """Linear attention whose decay is given as inputs, one of them tokens by tokens (src/models/minimax-01.cpp).

    That one makes a batch of one sequence larger than one of several: see compute.py.
    """

    fixed_normalise = True

    def state_inputs(self) -> None:
        """The states, and how fast each head forgets (llm_graph_input_la)."""
        super().state_inputs()
        g, heads, tokens, sequences = self.g, self.heads(0), self.tokens_each, self.sequences
        self.slopes = g.input(F32, heads)
        self.q_decay = g.input(F32, 1, heads, tokens, sequences)
        self.k_decay = g.input(F32, 1, heads, tokens, sequences)
        self.pair_decay = g.input(F32, tokens, tokens, heads, sequences)

    def conv_cache(self, il: int) -> Node:
        """There is no convolution; the engine makes, reads and writes an empty state all the same."""
        return self.b.state("r", 0, il)

    def state_cache(self, il: int) -> Node:
        """A matrix per head."""
        return self.b.state("s", state_elements(self.spec, il)[0], il)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Norm, attention, the normed input as residual, norm, experts, and so again."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        residual = b.norm(x, f"{prefix}.attn_norm")
        cur = self.lightning(residual, il) if il in self.recurrent else self.attention_of(residual, il)
        if last:
            cur, residual = g.get_rows(cur, self.out_ids), g.get_rows(residual, self.out_ids)
        cur = g.like("ADD", cur, g.like("SCALE", residual))
        residual = b.norm(cur, f"{prefix}.ffn_norm")
        cur = self.feed_forward(residual, il)
        return g.like("ADD", cur, g.like("SCALE", residual))

    def decayed(self, given: Node) -> Node:
        """A decay, scaled for the layer."""
        return self.g.like("UNARY", self.g.like("SCALE", given))

    def lightning(self, x: Node, il: int) -> Node:
        """Lightning attention over the tokens of the batch, and over what came before by a state."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        heads, head, tokens, sequences = self.heads(0), self.head_k(0), self.tokens_each, self.sequences
        self.load_state(self.conv_cache(il))
        rate = g.like("SCALE", self.slopes)
        x = g.reshape(x, x.ne[0], tokens, 1, sequences)
        mixed = g.like("UNARY", g.mul_mat(b.w(f"{prefix}.attn_qkv.weight"), x))
        mixed = g.reshape(mixed, 3 * head, heads, tokens, sequences)
        q, k, v = (g.view(mixed, (head, heads, tokens, sequences), mixed.nb[1:]) for _ in range(3))
        cache = self.state_cache(il)
        state = g.reshape(self.load_state(cache), head, head, heads, sequences)
        before = g.mul_mat(state, g.permute(g.like("MUL", q, self.decayed(self.q_decay)), 0, 2, 1, 3))
        scores = g.mul_mat(g.permute(k, 0, 2, 1, 3), g.permute(q, 0, 2, 1, 3))
        scores = g.like("MUL", scores, self.decayed(self.pair_decay))
        values = g.cont(g.permute(v, 1, 2, 0, 3))
        out = g.like("ADD", before, g.mul_mat(values, scores))
        g.expand(out)
        left = g.like("MUL", state, g.reshape(self.decayed(rate), 1, 1, heads))
        keys = g.cont(g.permute(g.like("MUL", k, self.decayed(self.k_decay)), 1, 2, 0, 3))
        self.store_state(cache, g.like("ADD", left, g.mul_mat(keys, values)))
        out = g.cont(g.permute(out, 0, 2, 1, 3))
        out = b.norm(g.reshape(out, head * heads, tokens, 1, sequences), f"{prefix}.attn_norm_2")
        gate = g.like("UNARY", g.mul_mat(b.w(f"{prefix}.attn_gate.weight"), x))
        out = g.mul_mat(b.w(f"{prefix}.attn_output.weight"), g.like("MUL", gate, out))
        return g.reshape(out, out.ne[0], tokens * sequences)
