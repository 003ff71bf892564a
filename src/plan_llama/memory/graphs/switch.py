"""Granite with adapters in the file: a small attention finds out which one a token is for.

Mirrors src/models/granite-switch.cpp of llama.cpp b11434. Behind the last layer the cache has one more, of one head,
for what tokens say of adapters; all of it runs before the first layer.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F32, I32, Node
from plan_llama.memory.graphs.variants import Granite


class GraniteSwitch(Granite):
    """Every product has the adapters' low-rank product beside it."""

    def inputs(self) -> Node:
        """Token rows, and the adapter of each token."""
        g, tokens = self.g, self.batch.tokens
        substitutes = g.input(I32, tokens)
        signals = {name: g.input(F32, tokens) for name in ("k", "v", "q")}
        x = g.get_rows(self.b.w("token_embd.weight"), substitutes)
        if self.spec.hparams.get("embedding_scale"):
            x = g.like("SCALE", x)
        self.positions = g.input(I32, tokens)
        self.attention_inputs()
        lane = {name: self._lane(signal) for name, signal in signals.items()}
        out = self.cached_attention(lane["q"], lane["k"], lane["v"], self.spec.layers)
        slots = g.cont(g.view(out, (1, tokens), (out.nb[1],)))
        slots = g.like("UNARY", g.like("CLAMP", g.reshape(slots, tokens)))
        self.adapters = g.cast(slots, I32)
        self.early = (self.adapters,)
        self.out_ids = g.input(I32, self.batch.outputs)
        return x

    def _lane(self, signal: Node) -> Node:
        """One number, in a head that is nothing else."""
        lane = self.g.reshape(signal, 1, 1, self.batch.tokens)
        return Node("PAD", F32, (self.head_k(0), 1, self.batch.tokens, 1), [lane])

    def heads(self, il: int) -> int:
        """Query heads of a layer."""
        return 1 if il == self.spec.layers else super().heads(il)

    def kv_heads(self, il: int) -> int:
        """Key and value heads of a layer."""
        return 1 if il == self.spec.layers else super().kv_heads(il)

    def head_k(self, il: int) -> int:
        """Elements of a key head, the same everywhere."""
        return super().head_k(min(il, self.spec.layers - 1))

    def head_v(self, il: int) -> int:
        """Elements of a value head."""
        return super().head_v(min(il, self.spec.layers - 1))

    @property
    def unrotated(self) -> frozenset[int]:
        """All layers, where the header says so."""
        rotates = self.spec.hparams.get("rope.scaling.finetuned", True)
        return frozenset() if rotates else frozenset(range(self.spec.layers))

    def adapted(self, name: str, x: Node) -> Node:
        """build_switched_lora_delta: what the adapter of each token adds to a product."""
        b, g, tokens = self.b, self.g, x.ne[1]
        ids = g.reshape(self.adapters, 1, tokens)
        low = g.mul_mat_id(b.w(f"{name}.lora_a"), g.reshape(x, x.ne[0], 1, tokens), ids)
        out = g.mul_mat_id(b.w(f"{name}.lora_b"), low, ids)
        return g.reshape(out, out.ne[0], tokens)

    def switched(self, name: str, x: Node) -> Node:
        """build_switched_lora_mm."""
        base = self.g.mul_mat(self.b.w(f"{name}.weight"), x)
        return self.g.like("ADD", base, self.adapted(name, x))

    def qkv(self, x: Node, il: int) -> tuple[Node, Node, Node]:
        """Parts of one product are copied out for what adapters add."""
        b, g, tokens = self.b, self.g, self.batch.tokens
        whole = g.mul_mat(b.w(f"blk.{il}.attn_qkv.weight"), x)
        parts = []
        for name, heads in (("q", self.heads(il)), ("k", self.kv_heads(il)), ("v", self.kv_heads(il))):
            part = g.cont(g.view(whole, (self.head_k(il) * heads, tokens), (whole.nb[1],)))
            part = g.like("ADD", part, self.adapted(f"blk.{il}.attn_{name}", x))
            parts.append(g.reshape(part, self.head_k(il), heads, tokens))
        return parts[0], parts[1], parts[2]

    def attention_output(self, x: Node, il: int) -> Node:
        """The output projection behind attention."""
        return self.switched(f"blk.{il}.attn_output", x)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer."""
        g, prefix = self.g, f"blk.{il}"
        cur = self.attention_of(self.norm(x, f"{prefix}.attn_norm"), il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
            ids = g.get_rows(g.reshape(self.adapters, 1, self.batch.tokens), self.out_ids)
            self.adapters = g.reshape(ids, self.batch.outputs)
        x = g.like("ADD", self._scaled(cur), x)
        cur = self.norm(x, f"{prefix}.ffn_norm")
        gate, up = (self.switched(f"{prefix}.ffn_{name}", cur) for name in ("gate", "up"))
        cur = self.switched(f"{prefix}.ffn_down", g.like("MUL", g.like("UNARY", gate), up))
        return g.like("ADD", self._scaled(cur), x)

    def _scaled(self, x: Node) -> Node:
        return self.g.like("SCALE", x) if self.scaled_branches else x
