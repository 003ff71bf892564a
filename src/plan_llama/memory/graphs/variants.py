"""Graphs that differ from the plain decoder's in one or two steps.

Mirrors the files of src/models of llama.cpp b11434 that the classes name.
"""

from __future__ import annotations

from plan_llama.memory.blocks import Builder
from plan_llama.memory.experts import moe
from plan_llama.memory.ggml import Node
from plan_llama.memory.graphs.decoder import Decoder


class GptOss(Decoder):
    """Attention sinks, windows, biased experts (src/models/openai-moe.cpp)."""

    default_gating = 3
    default_normalise = False
    late_rows = True


class MiniCpm(Decoder):
    """What enters is scaled, by 12 unless the header says otherwise (src/models/minicpm.cpp)."""

    default_embedding_scale = 12.0


class PanguEmbedded(Decoder):
    """Turned without the factors that its files may hold (src/models/pangu-embed.cpp)."""

    def rope(self, x: Node, il: int) -> Node:  # noqa: ARG002 - the same in every layer
        """ggml_rope_ext."""
        return self.b.rope(x, self.positions)


class RowNorms(Decoder):
    """Queries and keys are normed over all heads at once, before they are split (src/models/olmoe.cpp,
    minimax-m2.cpp).
    """

    row_norms = True  # if not, heads have theirs, and only the splitting is late (step35)

    def qkv(self, x: Node, il: int) -> tuple[Node, Node, Node]:
        """build_qkv without its reshapes: parts of a fused product are copied out."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        heads = {"q": (self.head_k(il), self.heads(il)), "k": (self.head_k(il), self.kv_heads(il))}
        heads["v"] = (self.head_v(il), self.kv_heads(il))
        fused = b.mm(f"{prefix}.attn_qkv", x) if b.has(f"{prefix}.attn_qkv.weight") else None
        parts: list[Node] = []
        for name, (size, count) in heads.items():
            if fused is None:
                part = b.mm(f"{prefix}.attn_{name}", x)
            else:
                part = g.cont(g.view(fused, (size * count, tokens), (fused.nb[1],)))
            if name != "v" and self.row_norms:
                part = b.norm(part, f"{prefix}.attn_{name}_norm")
            parts.append(g.reshape(part, size, count, tokens))
        return parts[0], parts[1], parts[2]

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """None where it is done already."""
        return (q, k) if self.row_norms else super().norms_of_heads(q, k, il)


class WindowRotation(Decoder):
    """Layers without a window know no positions (src/models/exaone-moe.cpp)."""

    @property
    def unrotated(self) -> frozenset[int]:
        """Those that see the whole context."""
        return frozenset(range(self.spec.layers)) - self.windowed


class HyV3(Decoder):
    """The rows that are wanted are picked behind the final norm (src/models/hy-v3.cpp)."""

    late_rows = True

    def head(self, x: Node) -> None:
        """Final norm of all tokens, then the rows and their logits."""
        x = self.norm(x, "output_norm")
        x.is_output = True
        x = self.g.get_rows(x, self.out_ids)
        x.is_output = True
        self.logits(x)


class SmolLm3(Decoder):
    """Every fourth layer without rope (src/models/smollm3.cpp)."""

    turns = 4

    @property
    def unrotated(self) -> frozenset[int]:
        """The last of four."""
        return self.every_fourth_layer(3)


class Deci(Decoder):
    """Layers without attention, with a matrix in its place, or without a feed-forward (src/models/deci.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """What a layer lacks is passed over. One without a feed-forward ends with its input: what attention found,
        though it is computed, goes nowhere.
        """
        b, g, prefix = self.b, self.g, f"blk.{il}"
        heads = self.heads(il)
        residual = cur = x
        if heads:
            cur = self.norm(x, f"{prefix}.attn_norm")
            if self.kv_heads(il):
                cur = self.attention_of(cur, il)
            else:
                cur = g.mul_mat(b.w(f"{prefix}.attn_output.weight"), cur)
        if not self.spec.int_param("feed_forward_length", layer=il):
            return x
        if last and not self.batch.hidden:
            cur, residual = g.get_rows(cur, self.out_ids), g.get_rows(residual, self.out_ids)
        ffn_in = g.like("ADD", cur, residual) if heads else cur
        return g.like("ADD", self.second_branch(ffn_in, il), ffn_in)


class Glm4(Decoder):
    """Norms behind both branches (src/models/glm4.cpp)."""

    post_norms = True


class Granite(Decoder):
    """Branches and logits are scaled (src/models/granite.cpp, granite-moe.cpp)."""

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.scaled_branches = bool(self.spec.hparams.get("residual_scale"))

    def finished(self, logits: Node) -> Node:
        """f_logit_scale."""
        return self.g.like("SCALE", logits)


class GroveMoe(Decoder):
    """Behind the experts smaller ones, each for a group of them (src/models/grovemoe.cpp)."""

    def experts_of(self, x: Node, il: int) -> Node:
        """Both branches; the second one works on what the first one made."""
        b, g, spec, prefix = self.b, self.g, self.spec, f"blk.{il}"
        used, experts = spec.int_param("expert_used_count", layer=il), spec.int_param("expert_count")
        chunk = spec.int_param("experts_per_group")
        logits = b.mm(f"{prefix}.ffn_gate_inp", x)
        out = self._branch(x, prefix, logits, used, "exps", 1)
        adjusted = self._branch(out, prefix, logits, min(used, experts // chunk), "chexps", chunk)
        return g.like("ADD", out, g.like("SCALE", adjusted))

    def _branch(self, x: Node, prefix: str, logits: Node, used: int, matrices: str, chunk: int) -> Node:
        return moe(
            self.b,
            x,
            prefix,
            used=used,
            gating="softmax",
            normalise=True,
            scale=self.spec.hparams.get("expert_weights_scale", 0.0) not in (0, 1),
            logits=logits,
            ranked=self.g.like("UNARY", logits),
            scaled=False,
            matrices=matrices,
            chunk=chunk,
        )
