"""The graph of a plain decoder, put together from blocks: it follows the tensors that a file has.

Mirrors src/models/llama.cpp of llama.cpp b11434 and its many relatives.
"""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.memory.blocks import Builder, hadamard_size
from plan_llama.memory.ggml import F32, I32, I64, Node
from plan_llama.memory.windows import windows
from plan_llama.models.types import ModelSpec

# llama_model_rope_type, src/llama-model.cpp
_MROPE = frozenset(
    {"qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "clef", "qwen4exp", "qwen3tts"}
)
_MROPE_IF_DIVIDED = frozenset({"glm4", "glm4moe", "bailingmoe3", "hunyuan_vl"})
# src/llama-hparams.h, enum llama_expert_gating_func_type
_GATING = {1: "softmax", 2: "sigmoid", 3: "softmax-weight"}


@dataclass(frozen=True, slots=True)
class CacheInputs:
    """The inputs of one KV cache."""

    cells: int
    rows_k: Node
    rows_v: Node
    mask: Node
    rotation_k: Node | None
    rotation_v: Node | None


class Decoder:
    """A decoder-only transformer with grouped-query attention (src/models/llama.cpp and its many relatives)."""

    soft_caps = False  # scores and logits are capped by tanh (gemma 2)
    scaled_embedding = False  # token rows are scaled on their way in (gemma)
    scaled_query = False  # queries are scaled before the cache is read (gemma)
    scaled_branches = False  # what attention and feed-forward add is scaled (minicpm3)
    scaled_head = False  # the final norm's rows are scaled before the head (minicpm3)
    late_rows = False  # the rows that are wanted are picked after the last layer, not in it (gpt-oss)
    all_rows = False  # logits are made for every token (cogvlm)
    post_norms = False  # norms named post_attention_norm and post_ffw_norm follow the branches (gemma, glm4)
    norm_op = "RMS_NORM"  # of layers and head; NORM cannot take over its source's memory
    rope_before_norms = False  # queries and keys are normed after the rotation (maincoder, talkie)

    def __init__(self, builder: Builder) -> None:
        self.b = builder
        self.g = builder.g
        self.spec: ModelSpec = builder.spec
        self.batch = builder.batch

    # -- inputs -------------------------------------------------------------------------------------------------

    def inputs(self) -> Node:
        """Makes the graph's inputs and returns the first layer's input."""
        g, batch = self.g, self.batch
        x = self.b.input_embedding()
        if self.scaled_embedding:
            x = g.like("MUL", x, g.input(F32, 1, batch.tokens))
            g.expand(x)
        self.positions = g.input(I32, batch.tokens * self.positions_per_token())
        self.attention_inputs()
        self.out_ids = g.input(I32, batch.outputs)
        return x

    def positions_per_token(self) -> int:
        """n_pos_per_embd: 4 for multi-dimensional rope, else 1 (llama_model_rope_type and use_mrope)."""
        sections = self.spec.hparams.get("rope.dimension_sections")
        divided = isinstance(sections, tuple) and len(sections) > 1 and sections[0] > 0 and sections[1] > 0
        architecture = self.spec.architecture
        return 4 if architecture in _MROPE or (divided and architecture in _MROPE_IF_DIVIDED) else 1

    def attention_inputs(self) -> None:
        """build_attn_inp_kv."""
        batch = self.batch
        self.full = self._cache_inputs(batch.cells)
        self.window = self._cache_inputs(batch.window_cells) if batch.window_cells else self.full
        self.windowed = windows(self.spec).layers

    def _cache_inputs(self, cells: int) -> CacheInputs:
        """Rows to write, mask to read, and the rotation before a quantised cache."""
        g, batch = self.g, self.batch
        value_rows = 1 if batch.flash_attn else max(self.value_row(il) for il in range(self.spec.layers))
        return CacheInputs(
            cells=cells,
            rows_k=g.input(I64, batch.tokens),
            rows_v=g.input(I64, batch.tokens * value_rows),
            mask=self.b.mask(cells),
            rotation_k=self._rotation(batch.kv_type_k.quantised, self.head_k(0), largest=True),
            rotation_v=self._rotation(batch.kv_type_v.quantised, self.head_v(0), largest=False),
        )

    def _rotation(self, quantised: bool, head: int, *, largest: bool) -> Node | None:
        if not quantised or head % 64:
            return None
        size = hadamard_size(head) if largest else 64
        return self.g.input(F32, size, size)

    # -- shapes ---------------------------------------------------------------------------------------------------

    def heads(self, il: int) -> int:
        """Query heads of a layer."""
        return self.spec.int_param("attention.head_count", layer=il)

    def kv_heads(self, il: int) -> int:
        """Key and value heads of a layer."""
        return self.spec.int_param("attention.head_count_kv", self.heads(il), layer=il)

    def head_k(self, il: int) -> int:
        """Elements of a key head."""
        default = self.spec.int_param("embedding_length") // max(1, self.heads(il))
        return self.spec.int_param("attention.key_length", default)

    def head_v(self, il: int) -> int:
        """Elements of a value head."""
        default = self.spec.int_param("embedding_length") // max(1, self.heads(il))
        return self.spec.int_param("attention.value_length", default)

    def value_row(self, il: int) -> int:
        """Elements of V per cell."""
        return self.head_v(il) * self.kv_heads(il)

    # -- the block --------------------------------------------------------------------------------------------------

    def norm(self, x: Node, name: str) -> Node:
        """build_norm with the architecture's kind of norm."""
        return self.b.norm(x, name, op=self.norm_op)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer: norm, attention, residual, norm, feed-forward, residual."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        residual = x
        cur = self.norm(x, f"{prefix}.attn_norm")
        cur = self.attention_of(cur, il)
        if last and not (self.late_rows or self.all_rows):
            cur = g.get_rows(cur, self.out_ids)
            residual = g.get_rows(residual, self.out_ids)
        if self.scaled_branches:
            cur = g.like("SCALE", cur)
        cur = self._post_norm(cur, prefix, "post_attention_norm")
        ffn_in = g.like("ADD", cur, residual)
        cur = self.norm(ffn_in, self._ffn_norm(prefix))
        cur = self.feed_forward(cur, il)
        if self.scaled_branches:
            cur = g.like("SCALE", cur)
        cur = self._post_norm(cur, prefix, "post_ffw_norm")
        out = g.like("ADD", cur, ffn_in)
        return g.like("ADD", out, b.deepstack[il]) if il < len(b.deepstack) else out

    def _post_norm(self, x: Node, prefix: str, name: str) -> Node:
        if not self.post_norms or not self.b.has(f"{prefix}.{name}.weight"):
            return x
        return self.b.norm(x, f"{prefix}.{name}")

    def _ffn_norm(self, prefix: str) -> str:
        # glm4moe and gpt-oss name the norm before the feed-forward "post_attention_norm"
        if self.b.has(f"{prefix}.ffn_norm.weight") or self.post_norms:
            return f"{prefix}.ffn_norm"
        return f"{prefix}.post_attention_norm"

    def attention_of(self, x: Node, il: int) -> Node:
        """build_qkv, rope, build_attn."""
        q, k, v = self.qkv(x, il)
        q, k = self.positioned(q, k, il)
        if self.scaled_query:
            q = self.g.like("SCALE", q)
        return self.attention_output(self.cached_attention(q, k, v, il), il)

    def attention_output(self, x: Node, il: int) -> Node:
        """The output projection behind attention."""
        return self.b.mm(f"blk.{il}.attn_output", x)

    def qkv(self, x: Node, il: int) -> tuple[Node, Node, Node]:
        """build_qkv: three products, or three views of one."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        tokens = self.batch.tokens
        heads, kv_heads, head_k, head_v = self.heads(il), self.kv_heads(il), self.head_k(il), self.head_v(il)
        if b.has(f"{prefix}.attn_qkv.weight"):
            qkv = b.mm(f"{prefix}.attn_qkv", x)
            part = (qkv.type.nbytes(head_k), qkv.nb[1])
            q = g.view(qkv, (head_k, heads, tokens), part)
            k = g.view(qkv, (head_k, kv_heads, tokens), part)
            v = g.view(qkv, (head_v, kv_heads, tokens), (qkv.type.nbytes(head_v), qkv.nb[1]))
        else:
            q = g.reshape(b.mm(f"{prefix}.attn_q", x), head_k, heads, tokens)
            k = g.reshape(b.mm(f"{prefix}.attn_k", x), head_k, kv_heads, tokens)
            v = g.reshape(b.mm(f"{prefix}.attn_v", x), head_v, kv_heads, tokens)
        return q, k, v

    def positioned(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Queries and keys normed, where there are norms, and rotated by their positions."""
        if not self.rope_before_norms:
            q, k = self.norms_of_heads(q, k, il)
        if il not in self.unrotated:
            factors = self.b.rope_factors(il)
            q = self.b.rope(q, self.positions, factors)
            k = self.b.rope(k, self.positions, factors)
        return self.norms_of_heads(q, k, il) if self.rope_before_norms else (q, k)

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Norms over each head of queries and keys."""
        b, prefix = self.b, f"blk.{il}"
        if not b.has(f"{prefix}.attn_q_norm.weight"):
            return q, k
        return b.norm(q, f"{prefix}.attn_q_norm"), b.norm(k, f"{prefix}.attn_k_norm")

    @property
    def unrotated(self) -> frozenset[int]:
        """Layers that do not rotate queries and keys."""
        return frozenset()

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:
        """build_attn for a plain KV cache, or for one of a pair with a sliding window (build_attn_inp_kv_iswa)."""
        b, g, batch = self.b, self.g, self.batch
        at = self.window if il in self.windowed else self.full
        if at.rotation_k is not None:
            q, k = b.rotate(q, at.rotation_k), b.rotate(k, at.rotation_k)
        if at.rotation_v is not None:
            v = b.rotate(v, at.rotation_v)
        if self.windowed:
            g.expand(q, k, v)
        else:
            g.expand(q, v, k)
        kv_heads, head_k, head_v = self.kv_heads(il), self.head_k(il), self.head_v(il)
        cache_k = b.cache("k", batch.kv_type_k, head_k * kv_heads, at.cells, il)
        cache_v = b.cache("v", batch.kv_type_v, head_v * kv_heads, at.cells, il)
        b.store(cache_k, k, at.rows_k)
        (b.store if batch.flash_attn else b.store_transposed)(cache_v, v, at.rows_v)
        sinks = b.maybe(f"blk.{il}.attn_sinks.weight")
        out = b.attention(
            q,
            b.read_k(cache_k, head_k, kv_heads, at.cells),
            b.read_v(cache_v, head_v, kv_heads, at.cells),
            at.mask,
            sinks=sinks,
            soft_cap=self.soft_caps,
        )
        return out if at.rotation_v is None else b.rotate(out, at.rotation_v)

    def feed_forward(self, x: Node, il: int) -> Node:
        """The dense branch, or the experts with the shared ones beside them."""
        prefix = f"blk.{il}"
        if not self.b.has(f"{prefix}.ffn_gate_inp.weight"):
            return self.b.ffn(x, prefix)
        out = self.experts_of(x, il)
        if self.b.has(f"{prefix}.ffn_up_shexp.weight"):
            out = self.g.like("ADD", out, self.shared_experts(x, prefix))
        return out

    def shared_experts(self, x: Node, prefix: str) -> Node:
        """The experts that every token visits; Qwen gates them."""
        out = self.b.ffn(x, prefix, "_shexp")
        if self.b.has(f"{prefix}.ffn_gate_inp_shexp.weight"):
            gate = self.g.like("UNARY", self.b.mm(f"{prefix}.ffn_gate_inp_shexp", x))
            out = self.g.like("MUL", out, gate)
        return out

    def experts_of(self, x: Node, il: int) -> Node:
        """build_moe_ffn with the header's routing."""
        params = self.spec.hparams
        gating = self.spec.int_param("expert_gating_func", self.default_gating)
        scale = params.get("expert_weights_scale", 0.0)
        return self.b.moe(
            x,
            f"blk.{il}",
            used=self.spec.int_param("expert_used_count", layer=il),
            gating=_GATING.get(gating, "softmax"),
            normalise=self.always_normalise
            or bool(params.get("expert_weights_norm", self.default_normalise)),
            scale=scale not in (0, 1),
            groups=(
                self.spec.int_param("expert_group_count", 1),
                self.spec.int_param("expert_group_used_count", 1),
            ),
        )

    default_gating = 1
    default_normalise = True
    always_normalise = False  # whatever the header says

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """Final norm and logits; both stay allocated (set_outputs)."""
        g = self.g
        if self.late_rows:
            x.is_output = True  # t_h_nextn, for those who draft
            x = g.get_rows(x, self.out_ids)
        x = self.norm(x, "output_norm")
        x.is_output = True
        self.logits(x)

    def logits(self, x: Node) -> None:
        """The product with the head's matrix."""
        g = self.g
        logits = g.mul_mat(self.head_matrix(), g.like("SCALE", x) if self.scaled_head else x)
        for op in ("SCALE", "UNARY", "SCALE") if self.caps_logits() else ():
            logits = g.like(op, logits)
        logits = self.finished(logits)
        logits.is_output = True
        g.expand(logits)

    def head_matrix(self) -> Node:
        """output.weight, or the token table where embeddings are tied."""
        b = self.b
        return b.output_weight("output.weight" if b.has("output.weight") else "token_embd.weight")

    def finished(self, logits: Node) -> Node:
        """What else is done with the logits."""
        return logits

    def caps_logits(self) -> bool:
        """Whether the logits are capped by tanh."""
        return self.soft_caps


class GptOss(Decoder):
    """Attention sinks, windows, biased experts (src/models/openai-moe.cpp)."""

    default_gating = 3
    default_normalise = False
    late_rows = True


class RowNorms(Decoder):
    """Queries and keys are normed over all heads at once, before they are split (src/models/olmoe.cpp,
    minimax-m2.cpp).
    """

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
            if name != "v":
                part = b.norm(part, f"{prefix}.attn_{name}_norm")
            parts.append(g.reshape(part, size, count, tokens))
        return parts[0], parts[1], parts[2]

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Already done."""
        return q, k


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
