"""Graphs of the Gemma family."""

from __future__ import annotations

from plan_llama.memory.ggml import F32, I32, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.windows import cached_layers

_ALTUPS = 4  # n_altup, src/llama-hparams.h


class Gemma(Decoder):
    """Scaled embeddings and queries (src/models/gemma.cpp)."""

    scaled_query = True

    def inputs(self) -> Node:
        """The token rows are scaled."""
        return self.g.like("SCALE", super().inputs())


class Gemma2(Gemma):
    """Norms behind both branches, capped scores and logits, windows (src/models/gemma2.cpp)."""

    post_norms = True
    soft_caps = True


class Gemma3(Decoder):
    """Scaled embeddings and queries, norms behind both branches, windows (src/models/gemma3.cpp)."""

    post_norms = True
    scaled_embedding = True
    scaled_query = True

    def caps_logits(self) -> bool:
        """Where the header says how far."""
        return bool(self.spec.hparams.get("final_logit_softcapping"))


class SharedCache(Gemma3):
    """What gemma 3n and 4 share: normed values, later layers without a cache, per-layer embeddings."""

    scaled_query = False
    late_rows = True

    def attention_of(self, x: Node, il: int) -> Node:
        """Layers without a cache of their own have queries only, and read that of an earlier layer of their kind."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        head, kv_heads = self.head_k(il), self.kv_heads(il)
        q = g.reshape(b.mm(f"{prefix}.attn_q", x), head, self.heads(il), tokens)
        q = self.rope(b.norm(q, f"{prefix}.attn_q_norm"), il)
        if il < cached_layers(self.spec):
            rows_k = b.mm(f"{prefix}.attn_k", x)
            rows_v = b.mm(f"{prefix}.attn_v", x) if b.has(f"{prefix}.attn_v.weight") else rows_k
            k = b.norm(g.reshape(rows_k, head, kv_heads, tokens), f"{prefix}.attn_k_norm")
            v = g.like("RMS_NORM", g.reshape(rows_v, head, kv_heads, tokens))
            out = self.cached_attention(q, self.rope(k, il), v, il)
        else:
            out = self._shared_attention(q, il)
        return b.mm(f"{prefix}.attn_output", out)

    def _shared_attention(self, q: Node, il: int) -> Node:
        """build_attn without K and V; the layer_reuse_cb of llama_model::create_memory says whose cache is read."""
        at = self.window if il in self.windowed else self.full
        if at.rotation_k is not None:
            q = self.b.rotate(q, at.rotation_k)
        self.g.expand(q)
        return self.read(q, at, il, cached_layers(self.spec) - (2 if il in self.windowed else 1))

    def rope(self, x: Node, il: int) -> Node:
        """Factors only without a window."""
        return self.b.rope(x, self.positions, None if il in self.windowed else self.b.rope_factors(il))

    def layer_embeddings(self, x: Node) -> Node:
        """build_inp_per_layer and project_per_layer_inputs: [size, tokens, layers]."""
        b, g, tokens, layers = self.b, self.g, self.batch.tokens, self.spec.layers
        size = b.w("per_layer_proj_norm.weight").ne[0]
        rows = g.get_rows(b.w("per_layer_token_embd.weight"), g.input(I32, tokens))
        rows = g.like("SCALE", g.reshape(rows, size, layers, tokens))
        g.expand(rows)
        made = g.like("SCALE", g.mul_mat(b.w("per_layer_model_proj.weight"), x))
        made = b.norm(g.reshape(made, size, layers, tokens), "per_layer_proj_norm")
        made = g.like("SCALE", g.like("ADD", made, rows))
        return g.cont(g.permute(made, 0, 2, 1, 3))

    def layer_embedded(self, x: Node, il: int) -> Node:
        """What a layer's own embeddings make of `x`."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        gate = g.like("UNARY", b.mm(f"{prefix}.inp_gate", x))
        out = b.mm(f"{prefix}.proj", g.like("MUL", gate, slice_2d(self, self.per_layer)))
        return b.norm(out, f"{prefix}.post_norm")

    per_layer: Node


class Gemma4(SharedCache):
    """Experts beside the dense branch, per-layer embeddings in the small ones (src/models/gemma4.cpp)."""

    normed_rows = True
    fixed_gating = 1
    fixed_normalise = True

    def inputs(self) -> Node:
        """The per-layer embeddings follow the other inputs."""
        x = super().inputs()
        if self.b.has("per_layer_token_embd.weight"):
            self.per_layer = self.layer_embeddings(x)
        return x

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """A layer of gemma 3, the per-layer embedding and a scale."""
        out = super().block(x, il, last=last)
        if self.b.has("per_layer_token_embd.weight"):
            out = self.g.like("ADD", out, self.layer_embedded(out, il))
        scale = self.b.maybe(f"blk.{il}.layer_output_scale.weight")
        return out if scale is None else self.g.like("MUL", out, scale)

    def second_branch(self, x: Node, il: int) -> Node:
        """The dense branch, and the experts beside it; the router has its own norm of `x`."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        dense = b.ffn(b.norm(x, f"{prefix}.ffn_norm"), prefix)
        if not b.has(f"{prefix}.ffn_gate_inp.weight"):
            return dense
        dense = b.norm(dense, f"{prefix}.post_ffw_norm_1")
        seen = g.like("MUL", g.like("SCALE", g.like("RMS_NORM", x)), b.w(f"{prefix}.ffn_gate_inp.scale"))
        logits = g.mul_mat(b.w(f"{prefix}.ffn_gate_inp.weight"), seen)
        experts = self.experts_by(logits, b.norm(x, f"{prefix}.pre_ffw_norm_2"), il)
        return g.like("ADD", dense, b.norm(experts, f"{prefix}.post_ffw_norm_2"))


class Gemma3n(SharedCache):
    """Four streams (AltUp), a low-rank branch (LAuReL), per-layer embeddings (src/models/gemma3n.cpp)."""

    keeps_hidden = False
    leading_layers = 10  # n_layer_sparsity: they have sparse activations

    def caps_logits(self) -> bool:
        """Always."""
        return True

    def inputs(self) -> Node:
        """The embedding, and three streams made of it."""
        g, tokens = self.g, self.batch.tokens
        x = super().inputs()
        self.per_layer = self.layer_embeddings(x)
        target = self._magnitude(x)
        added = g.mul_mat(self.b.w("altup_proj.weight"), g.repeat(x, x.ne[0], tokens, _ALTUPS - 1, 1))
        added = g.like("DIV", g.like("MUL", added, target), self._magnitude(added))
        return g.concat(x, added, 2)

    def _magnitude(self, x: Node) -> Node:
        g = self.g
        return g.like("SQRT", g.sum_rows(g.like("SQR", x)))

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked at the end
        """One layer: the first stream goes through it, the others are predicted and corrected."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        predictions = self._predict(x, prefix)
        active = slice_2d(self, predictions)
        cur = b.norm(active, f"{prefix}.attn_norm")
        low_rank = b.mm(f"{prefix}.laurel_r", b.mm(f"{prefix}.laurel_l", cur))
        low_rank = g.like("ADD", b.norm(low_rank, f"{prefix}.laurel_post_norm"), cur)
        cur = b.norm(self.attention_of(cur, il), f"{prefix}.post_attention_norm")
        branch = g.like("SCALE", g.like("ADD", g.like("ADD", cur, active), low_rank))
        cur = b.norm(branch, f"{prefix}.ffn_norm")
        up, gate = b.mm(f"{prefix}.ffn_up", cur), b.mm(f"{prefix}.ffn_gate", cur)
        if il < self.leading_layers:
            gate = self._most_active(gate)
        cur = b.mm(f"{prefix}.ffn_down", g.like("MUL", up, g.like("UNARY", gate)))
        cur = g.like("ADD", b.norm(cur, f"{prefix}.post_ffw_norm"), branch)
        corrected = self._correct(predictions, cur, prefix)
        first = g.like("MUL", slice_2d(self, corrected), b.w(f"{prefix}.altup_correct_scale.weight"))
        rest = g.like("ADD", self._others(corrected), self.layer_embedded(first, il))
        return g.concat(slice_2d(self, corrected), rest, 2)

    def _others(self, x: Node) -> Node:
        return self.g.view(x, (x.ne[0], x.ne[1], _ALTUPS - 1), x.nb[1:3])

    def _most_active(self, x: Node) -> Node:
        """gaussian_topk; a mean has the shape of a sum."""
        g = self.g
        mean = g.sum_rows(x)
        spread = g.like("SQRT", g.like("SCALE", g.sum_rows(g.like("SQR", g.like("SUB", x, mean)))))
        return g.like("UNARY", g.like("SUB", x, g.like("ADD", mean, g.like("SCALE", spread))))

    def _modalities(self, x: Node, prefix: str) -> Node:
        b, g = self.b, self.g
        seen = g.like("SCALE", b.norm(x, f"{prefix}.altup_router_norm"))
        return g.like("UNARY", g.mul_mat(b.w(f"{prefix}.altup_router.weight"), seen))

    def _predict(self, x: Node, prefix: str) -> Node:
        """altup_predict."""
        b, g = self.b, self.g
        factors = b.mm(f"{prefix}.altup_predict_coef", self._modalities(slice_2d(self, x), prefix))
        factors = g.reshape(factors, _ALTUPS, _ALTUPS, self.batch.tokens)
        made = g.mul_mat(g.cont(g.permute(x, 1, 2, 0, 3)), factors)
        return g.like("ADD", g.cont(g.permute(made, 0, 2, 1, 3)), x)

    def _correct(self, predictions: Node, activated: Node, prefix: str) -> Node:
        """altup_correct."""
        b, g, tokens = self.b, self.g, self.batch.tokens
        modalities = self._modalities(activated, prefix)
        change = g.like("SUB", activated, slice_2d(self, predictions))
        factors = g.like("SCALE", b.mm(f"{prefix}.altup_correct_coef", modalities))
        factors = g.cont(g.transpose(factors), 1, tokens, _ALTUPS)
        change = g.repeat(change, change.ne[0], tokens, _ALTUPS, 1)
        return g.like("ADD", g.like("MUL", change, factors), predictions)

    def head(self, x: Node) -> None:
        """The streams become one."""
        b, g = self.b, self.g
        target = self._magnitude(slice_2d(self, x))
        others = g.mul_mat(b.w("altup_unembd_proj.weight"), self._others(x))
        others = g.like("DIV", g.like("MUL", others, target), self._magnitude(others))
        cur = slice_2d(self, x)
        for _ in range(_ALTUPS - 1):
            cur = g.like("ADD", cur, slice_2d(self, others))
        super().head(g.like("SCALE", cur))


def slice_2d(graph: Decoder, x: Node) -> Node:
    """A view of one matrix of a stack of them."""
    return graph.g.view(x, (x.ne[0], x.ne[1]), (F32.nbytes(x.ne[0]),))
