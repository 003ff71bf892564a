"""The graph of each architecture, put together from blocks. Mirrors src/models/*.cpp of llama.cpp b11434.

An architecture is a class with the inputs it makes once and the block it repeats; `GRAPHS` names those that were held
against the real engine. `Decoder` follows the tensors that a file has; for an architecture that is not named here an
upper bound is used instead (rough.py), and said to be an assumption.
"""

from __future__ import annotations

from plan_llama.memory.blocks import Builder, hadamard_size
from plan_llama.memory.ggml import F16, F32, I32, I64, Node
from plan_llama.models.types import ModelSpec

# llama_model_rope_type, src/llama-model.cpp
_MROPE = frozenset(
    {"qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "clef", "qwen4exp", "qwen3tts"}
)
_MROPE_IF_DIVIDED = frozenset({"glm4", "glm4moe", "bailingmoe3", "hunyuan_vl"})
# src/llama-hparams.h, enum llama_expert_gating_func_type
_GATING = {1: "softmax", 2: "sigmoid", 3: "softmax-weight"}


class Decoder:
    """A decoder-only transformer with grouped-query attention (src/models/llama.cpp and its many relatives)."""

    soft_caps = False  # scores and logits are capped by tanh (gemma 2)
    post_norms = False  # norms named post_attention_norm and post_ffw_norm follow the branches (gemma, glm4)

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
        g, batch = self.g, self.batch
        self.rows_k = g.input(I64, batch.tokens)
        value_rows = 1 if batch.flash_attn else max(self.value_row(il) for il in range(self.spec.layers))
        self.rows_v = g.input(I64, batch.tokens * value_rows)
        self.mask = self.b.mask(batch.cells)
        self.rotation_k = self._rotation(batch.kv_type_k.quantised, self.head_k(0), largest=True)
        self.rotation_v = self._rotation(batch.kv_type_v.quantised, self.head_v(0), largest=False)

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

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer: norm, attention, residual, norm, feed-forward, residual."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        residual = x
        cur = b.norm(x, f"{prefix}.attn_norm")
        cur = self.attention_of(cur, il)
        if last:
            cur = g.get_rows(cur, self.out_ids)
            residual = g.get_rows(residual, self.out_ids)
        cur = self._post_norm(cur, prefix, "post_attention_norm")
        ffn_in = g.like("ADD", cur, residual)
        cur = b.norm(ffn_in, self._ffn_norm(prefix))
        cur = self.feed_forward(cur, il)
        cur = self._post_norm(cur, prefix, "post_ffw_norm")
        return g.like("ADD", cur, ffn_in)

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
        if b.has(f"{prefix}.attn_q_norm.weight"):
            q = b.norm(q, f"{prefix}.attn_q_norm")
            k = b.norm(k, f"{prefix}.attn_k_norm")
        factors = b.maybe("rope_freqs.weight")
        q = b.rope(q, self.positions, factors)
        k = b.rope(k, self.positions, factors)
        out = self.cached_attention(q, k, v, il)
        return b.mm(f"{prefix}.attn_output", out)

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:
        """build_attn for a plain KV cache."""
        b, g, batch = self.b, self.g, self.batch
        if self.rotation_k is not None:
            q, k = b.rotate(q, self.rotation_k), b.rotate(k, self.rotation_k)
        if self.rotation_v is not None:
            v = b.rotate(v, self.rotation_v)
        g.expand(q, v, k)
        kv_heads, head_k, head_v = self.kv_heads(il), self.head_k(il), self.head_v(il)
        cache_k = b.cache("k", batch.kv_type_k, head_k * kv_heads, batch.cells, il)
        cache_v = b.cache("v", batch.kv_type_v, head_v * kv_heads, batch.cells, il)
        b.store(cache_k, k, self.rows_k)
        (b.store if batch.flash_attn else b.store_transposed)(cache_v, v, self.rows_v)
        sinks = b.maybe(f"blk.{il}.attn_sinks.weight")
        out = b.attention(
            q,
            b.read_k(cache_k, head_k, kv_heads, batch.cells),
            b.read_v(cache_v, head_v, kv_heads, batch.cells),
            self.mask,
            sinks=sinks,
            soft_cap=self.soft_caps,
        )
        return out if self.rotation_v is None else b.rotate(out, self.rotation_v)

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
            normalise=bool(params.get("expert_weights_norm", self.default_normalise)),
            scale=scale not in (0, 1),
            groups=(
                self.spec.int_param("expert_group_count", 1),
                self.spec.int_param("expert_group_used_count", 1),
            ),
        )

    default_gating = 1
    default_normalise = True

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """Final norm and logits; both stay allocated (set_outputs)."""
        b, g = self.b, self.g
        x = b.norm(x, "output_norm")
        x.is_output = True
        name = "output.weight" if b.has("output.weight") else "token_embd.weight"
        logits = g.mul_mat(b.output_weight(name), x)
        for op in ("SCALE", "UNARY", "SCALE") if self.soft_caps else ():
            logits = g.like(op, logits)
        logits.is_output = True
        g.expand(logits)


class GlmDsa(Decoder):
    """GLM-5: latent attention over a K-only cache, of which an indexer selects cells (src/models/glm-dsa.cpp)."""

    default_gating = 2
    default_normalise = False

    def attention_inputs(self) -> None:
        """build_attn_inp_k_dsa: rows and mask of the latent cache, and the same for the indexer's."""
        g, b, batch = self.g, self.b, self.batch
        self.rows_k = g.input(I64, batch.tokens)
        self.mask = b.mask(batch.cells)
        self.rows_index = g.input(I64, batch.tokens)
        self.mask_index = b.mask(batch.cells, F16)  # the fused indexer reads an f16 mask
        size = hadamard_size(self.spec.int_param("attention.indexer.key_length"))
        self.rotation_index = g.input(F32, size, size)
        self.selected: Node | None = None

    def has_indexer(self, il: int) -> bool:
        """Whether a layer selects cells itself; else it takes the selection of the layer before (GLM-5.2)."""
        return self.b.has(f"blk.{il}.indexer.attn_k.weight")

    def attention_of(self, x: Node, il: int) -> Node:
        """Query and key in latent form, the indexer, attention over what it selects."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}"
        tokens = batch.tokens
        heads = self.heads(il)
        latent = self.spec.int_param("attention.kv_lora_rank")
        rope = self.spec.int_param("rope.dimension_count")
        head = self.spec.int_param("attention.key_length_mla")
        qr = b.norm(g.mul_mat(b.w(f"{prefix}.attn_q_a.weight"), x), f"{prefix}.attn_q_a_norm")
        if self.has_indexer(il):
            self.selected = self._index(qr, x, il)
        q = g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), qr)
        q_strides = (q.type.nbytes(head), q.type.nbytes(head) * heads)
        q_nope = g.view(q, (head - rope, heads, tokens), q_strides)
        q_pe = g.view(q, (rope, heads, tokens), q_strides)
        compressed = g.mul_mat(b.w(f"{prefix}.attn_kv_a_mqa.weight"), x)
        row = compressed.type.nbytes(latent + rope)
        kv = g.view(compressed, (latent, tokens), (row,))
        k_pe = g.view(compressed, (rope, 1, tokens), (row, row))
        q_pe = b.rope(q_pe, self.positions)
        k_pe = b.rope(k_pe, self.positions)
        kv = b.norm(kv, f"{prefix}.attn_kv_a_norm")
        absorbed = g.mul_mat(b.w(f"{prefix}.attn_k_b.weight"), g.permute(q_nope, 0, 2, 1, 3))
        query = g.concat(g.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
        kv = g.reshape(kv, latent, 1, tokens)
        key = g.concat(kv, k_pe, 0)
        g.expand(query, kv, key)
        cache = b.cache("k", batch.kv_type_k, latent + rope, batch.cells, il)
        b.store(cache, key, self.rows_k)
        mask = self._selected_mask()
        k = b.read_k(cache, latent + rope, 1, batch.cells)
        v = g.view(k, (latent, *k.ne[1:]), k.nb[1:])
        out = b.attention(query, k, v, mask, v_mla=b.w(f"{prefix}.attn_v_b.weight"))
        return b.mm(f"{prefix}.attn_output", out)

    def _index(self, qr: Node, x: Node, il: int) -> Node:
        """The lightning indexer: scores over all cells and the indices of the best."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}.indexer"
        tokens = batch.tokens
        size = self.spec.int_param("attention.indexer.key_length")
        heads = self.spec.int_param("attention.indexer.head_count")
        wanted = self.spec.int_param("attention.indexer.top_k")
        q = g.reshape(g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), qr), size, heads, tokens)
        q = b.rope(q, self.positions)
        k = b.norm(g.mul_mat(b.w(f"{prefix}.attn_k.weight"), x), f"{prefix}.k_norm", op="NORM")
        k = b.rope(g.reshape(k, size, 1, tokens), self.positions)
        q = g.mul_mat(self.rotation_index, q)
        k = g.mul_mat(self.rotation_index, k)
        cache = b.cache("index", batch.kv_type_k, size, batch.cells, il)
        b.store(cache, k, self.rows_index)
        weights = g.mul_mat(b.w(f"{prefix}.proj.weight"), x)
        keys = b.read_k(cache, size, 1, batch.cells)
        streams = keys.ne[3]
        per_stream = tokens // streams
        q = g.view(q, (size, heads, per_stream, streams), (q.nb[1], q.nb[2], q.nb[3] // streams))
        weights = g.view(
            weights,
            (heads, per_stream, 1, streams),
            (weights.nb[1], weights.nb[2] // streams, weights.nb[3] // streams),
        )
        weights = g.like("SCALE", weights)
        scores = g.lightning_indexer(q, keys, weights, self.mask_index)
        return g.cont(g.top_k(scores, min(wanted, batch.cells)))

    def _selected_mask(self) -> Node:
        """The mask with everything but the selected cells closed (build_attn of the DSA input)."""
        g, b, mask = self.g, self.b, self.mask
        top = self.selected
        assert top is not None, "a layer without an indexer follows one with it"  # noqa: S101 - as the engine asserts
        closed = g.like("FILL", mask)
        closed = g.view(closed, (1, mask.ne[0], mask.ne[1], mask.ne[3]), mask.nb[:3])
        rows = g.view(
            top, (top.ne[0], top.ne[1], top.ne[3], 1), (top.nb[1], top.nb[2], top.ne[3] * top.nb[3])
        )
        zeros = b.filled(1, rows.ne[0], rows.ne[1], rows.ne[2])
        opened = g.set_rows(closed, zeros, rows)
        opened = g.view(
            opened,
            (opened.ne[1], opened.ne[2], 1, opened.ne[3]),
            (opened.nb[2], opened.nb[3], opened.nb[3]),
        )
        return g.like("ADD", opened, mask)


# Held against the real engine, tensor for tensor of their smallest models (tests/engine/test_archs.py).
_PLAIN = (
    "arcee",
    "bailingmoe",
    "bailingmoe2",
    "chatglm",
    "codeshell",
    "dbrx",
    "deci",
    "deepseek",
    "dots1",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "falcon",
    "gemma",
    "glm4",
    "glm4moe",
    "gptneox",
    "granite",
    "granitemoe",
    "grovemoe",
    "hunyuan-moe",
    "hy_v3",
    "internlm2",
    "jais2",
    "llama",
    "minicpm",
    "minimax-m2",
    "mistral3",
    "nanbeige",
    "nemotron",
    "olmo",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "xverse",
)

GRAPHS: dict[str, type[Decoder]] = {**dict.fromkeys(_PLAIN, Decoder), "glm-dsa": GlmDsa}
