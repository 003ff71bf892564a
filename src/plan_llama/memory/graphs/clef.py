"""Clef: Qwen3.5's layers without a cache or a state that stays, and a head that scores options (src/models/clef.cpp).

Mirrors llama.cpp b11434, whose reservation has one question with one option.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F16, F32, I32, Node
from plan_llama.memory.graphs.delta_net import DeltaNet
from plan_llama.memory.recurrent import recurrent_layers


class Clef(DeltaNet):
    """All tokens of a batch at once; the head reads what the layers made of them."""

    def attention_inputs(self) -> None:
        """build_attn_inp_causal: a mask of tokens by tokens. Every state starts from zero."""
        tokens = self.batch.tokens
        self.mask = self.g.input(F16 if self.batch.flash_attn else F32, tokens, tokens)
        self.sequences, self.tokens_each, self.kept = 1, tokens, 1
        self.recurrent = recurrent_layers(self.spec)

    def attention_of(self, x: Node, il: int) -> Node:
        """A delta net or gated attention."""
        return self.linear(x, il) if il in self.recurrent else self.gated_attention(x, il)

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:  # noqa: ARG002 - all alike
        """build_attn of the batch alone."""
        self.g.expand(q, k, v)
        return self.b.attention(q, k, v, self.mask)

    def conv_state(self, size: int, channels: int, il: int) -> Node:  # noqa: ARG002 - as above
        """Zeros."""
        return self.b.filled(size, channels)

    def conv_step(self, before: Node, x: Node, il: int) -> Node:  # noqa: ARG002 - as above
        """Those and the inputs; nothing is kept."""
        return self.g.concat(before, self.g.transpose(x), 0)

    def recurrence(self, cache: Node, q: Node, k: Node, v: Node, gate: Node, beta: Node, state: Node) -> Node:  # noqa: ARG002
        """The recurrence from zeros; the new state goes nowhere."""
        g, (size, heads, tokens, sequences) = self.g, v.ne
        state = self.b.filled(size, size, heads)
        made = g.gated_delta_net(q, k, v, gate, beta, state)
        row, head = F32.nbytes(size), F32.nbytes(size * heads)
        return g.view(made, (size, heads, tokens, sequences), (row, head, head * tokens))

    def load_state(self, cache: Node, take: object = None) -> Node:  # noqa: ARG002 - there is none
        """What is not used."""
        return cache

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """The scores of options, as rows of the output."""
        g = self.g
        scores = self._scored(self.b.norm(x, "output_norm"))
        scores = Node("PAD", F32, (1, self.batch.tokens, 1, 1), [scores])
        scores = g.like("ADD", scores, g.input(F32, 1))
        scores.is_output = True
        g.expand(scores)

    def _normed(self, x: Node, name: str) -> Node:
        return self.b.norm(x, name, op="NORM")

    def _projected(self, name: str, x: Node) -> Node:
        return self.g.mul_mat(self.b.w(f"decision.proj_{name}.weight"), x)

    def _scored(self, hidden: Node) -> Node:
        """build_head, in the order of the source."""
        b, g, tokens = self.b, self.g, self.batch.tokens
        ids, pool_q, pool_o = g.input(I32, tokens), g.input(F32, tokens, 1), g.input(F32, tokens, 1)
        kind, owner, mask = g.input(I32, 1), g.input(I32, 1), g.input(F32, 1, 1)
        hidden = self._normed(hidden, "decision.hidden_norm")
        memory = self._projected("memory", hidden)
        last = g.view(hidden, (hidden.ne[0], 1), (hidden.nb[1],))
        turned = g.cont(g.transpose(hidden))
        question, context = g.mul_mat(turned, pool_q), g.mul_mat(turned, pool_o)
        lexical = g.get_rows(self.head_matrix(), ids)
        lexical = g.mul_mat(g.cont(g.transpose(lexical)), pool_o)
        options = self._projected("option_context", context)
        options = g.like("ADD", options, self._projected("option_lexical", lexical))
        asked = g.get_rows(self._projected("option_question", question), owner)
        options = g.like("ADD", options, asked)
        routing = self.spec.int_param("decision.routing_block_count")
        for il in range(routing):
            prefix = f"dec.blk.{il}"
            read = self._normed(memory, f"{prefix}.cross_attn_norm_kv")
            cur = self._attended(
                self._normed(options, f"{prefix}.cross_attn_norm"), read, f"{prefix}.cross_attn"
            )
            options = g.like("ADD", options, cur)
            options = g.like("ADD", options, self._fed(options, prefix))
        fields = self._projected("question", question)
        weights = g.like("SCALE", g.mul_mat(options, fields))
        weights = g.soft_max(g.like("ADD", weights, mask))
        summary = g.mul_mat(g.cont(g.transpose(options)), weights)
        fields = g.like("ADD", fields, self._normed(summary, "decision.option_summary_norm"))
        fields = g.like("ADD", fields, self._projected("global", last))
        fields = g.like("ADD", fields, g.get_rows(b.w("token_types.weight"), kind))
        for il in range(routing, routing + self.spec.int_param("decision.block_count")):
            prefix = f"dec.blk.{il}"
            cur = self._normed(fields, f"{prefix}.attn_norm")
            fields = g.like("ADD", fields, self._attended(cur, cur, f"{prefix}.attn"))
            cur = self._normed(fields, f"{prefix}.cross_attn_norm")
            fields = g.like("ADD", fields, self._attended(cur, memory, f"{prefix}.cross_attn"))
            fields = g.like("ADD", fields, self._fed(fields, prefix))
        fields = self._normed(fields, "decision.field_norm")
        anchor = g.get_rows(g.like("L2_NORM", g.like("ADD", question, last)), owner)
        prior = g.sum_rows(g.like("MUL", g.like("L2_NORM", lexical), anchor))
        options = self._normed(options, "decision.option_norm")
        return self._joined(prior, options, g.get_rows(fields, owner))

    def _joined(self, prior: Node, options: Node, field: Node) -> Node:
        """The prior, the cosine and the scorer's answer, each with its scale."""
        b, g = self.b, self.g
        cosine = g.sum_rows(g.like("MUL", g.like("L2_NORM", field), g.like("L2_NORM", options)))
        features = g.concat(field, options, 0)
        features = g.concat(features, g.like("MUL", field, options), 0)
        features = g.concat(features, g.like("UNARY", g.like("SUB", field, options)), 0)
        rest = b.mm("decision.scorer_out", g.like("UNARY", b.mm("decision.scorer", features)))
        first, second, third = (g.view(b.w("decision.scales"), (1,), ()) for _ in range(3))
        joint = g.like("ADD", g.like("MUL", cosine, second), rest)
        return g.like("ADD", g.like("MUL", prior, first), g.like("MUL", joint, third))

    def _attended(self, x: Node, memory: Node, name: str) -> Node:
        """build_head_attn: no mask."""
        b, g = self.b, self.g
        width, heads = x.ne[0], self.spec.int_param("decision.head_count")
        q, k, v = (b.mm(f"{name}_{part}", of) for part, of in (("q", x), ("k", memory), ("v", memory)))
        q = g.permute(g.reshape(q, width // heads, heads, q.ne[1]), 0, 2, 1, 3)
        k = g.permute(g.reshape(k, width // heads, heads, k.ne[1]), 0, 2, 1, 3)
        v = g.cont(g.permute(g.reshape(v, width // heads, heads, v.ne[1]), 1, 2, 0, 3))
        out = g.mul_mat(v, g.soft_max(g.mul_mat(k, q)))
        return b.mm(f"{name}_o", g.cont(g.permute(out, 0, 2, 1, 3), width, x.ne[1]))

    def _fed(self, x: Node, prefix: str) -> Node:
        """build_head_ffn."""
        b = self.b
        cur = b.mm(f"{prefix}.ffn_up", self._normed(x, f"{prefix}.ffn_norm"))
        return b.mm(f"{prefix}.ffn_down", self.g.like("UNARY", cur))
