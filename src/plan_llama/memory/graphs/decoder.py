"""The graph of a plain decoder, put together from blocks: it follows the tensors that a file has.

Mirrors src/models/llama.cpp of llama.cpp b11434 and its many relatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plan_llama.memory.blocks import Builder, hadamard_size
from plan_llama.memory.experts import moe
from plan_llama.memory.ggml import F32, I32, I64, Node
from plan_llama.memory.windows import cached_layers, windows
from plan_llama.models.types import ModelSpec

# llama_model_rope_type, src/llama-model.cpp
_MROPE = frozenset(
    {"qwen2vl", "paddleocr", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "clef", "qwen4exp", "qwen3tts"}
)
_MROPE_IF_DIVIDED = frozenset({"glm4", "glm4moe", "bailingmoe3", "hunyuan_vl"})
# src/llama-hparams.h, enum llama_expert_gating_func_type
_GATING = {1: "softmax", 2: "sigmoid", 3: "softmax-weight", 4: "sqrt-softplus"}

# whether experts' weights are divided by their sum, where build_moe_ffn is not given what the header says
_NORMALISES = {
    **dict.fromkeys(("dbrx", "ernie4_5-moe", "granite", "granitemoe", "llama", "minimax-m2"), True),
    **dict.fromkeys(("mistral3", "qwen3moe", "qwen3vlmoe"), True),
    **dict.fromkeys(("deepseek", "olmoe", "qwen2moe"), False),
}
# whose scales beside experts are given to build_moe_ffn
_EXPERT_SCALES = frozenset(
    {
        *(
            "cohere2moe",
            "deepseek32",
            "dots3note",
            "gemma4",
            "glm-dsa",
            "hy_v3",
            "llama",
            "mellum",
            "mistral3",
        ),
        *("qwen35moe", "qwen3moe", "qwen3next", "qwen4exp"),
    }
)

# norms behind the branches, by family
_POST_ATTENTION = ("post_attention_norm", "attn_output_norm")
_POST_FFN = ("post_ffw_norm", "layer_output_norm")


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

    early: tuple[Node, ...] = ()  # what inputs() computes for the layers beside what enters the first one
    soft_caps = False  # scores and logits are capped by tanh (gemma 2)
    default_embedding_scale = (
        0.0  # where the header does not say how everything that enters is scaled (granite)
    )
    scaled_embedding = False  # token rows are scaled on their way in (gemma)
    scaled_query = False  # queries are scaled before the cache is read (gemma)
    scaled_branches = False  # what attention and feed-forward add is scaled (minicpm3)
    scaled_head = False  # the final norm's rows are scaled before the head (minicpm3)
    late_rows = False  # the rows that are wanted are picked after the last layer, not in it (gpt-oss)
    all_rows = False  # logits are made for every token (cogvlm)
    normed_rows = False  # the rows that are wanted are picked behind the final norm (gemma 4)
    keeps_hidden = True  # what late rows are picked from stays for those who draft (t_h_nextn)
    norm_op = "RMS_NORM"  # of layers and head; NORM cannot take over its source's memory
    pre_norms = True  # attention and feed-forward have norms before them (not: olmo2)
    post_norms = False  # norms named post_attention_norm and post_ffw_norm follow the branches (gemma, glm4)
    rows_behind_norm = False  # the wanted rows are picked behind the norm that follows attention (afmoe)
    rope_before_norms = False  # queries and keys are normed after the rotation (maincoder, talkie)
    residual_first = False  # the feed-forward is added to the residual, not the other way round (phi3)
    fixed_gating: int | None = None  # how experts are weighed, where the engine does not ask the header
    fixed_normalise: bool | None = None
    weighs_input = False  # the experts' weights are multiplied in before the experts (llama 4)
    each_layer_differs = False  # no layer is like another though their tensors are (HRM)
    turns = 1  # so many kinds of layers take turns though their tensors do not differ (smollm3)
    leading_layers = 0  # so many at the start differ from the rest though their tensors do not (gemma 3n)
    score_bias: Node | None = None  # what is added to attention scores (t5)
    clamped_glu = False  # gate and up are clamped where the header says so (step35)

    def __init__(self, builder: Builder) -> None:
        self.b = builder
        self.g = builder.g
        self.spec: ModelSpec = builder.spec
        self.batch = builder.batch
        self.windowed = windows(self.spec).layers

    # -- inputs -------------------------------------------------------------------------------------------------

    def inputs(self) -> Node:
        """Makes the graph's inputs and returns the first layer's input."""
        g, batch = self.g, self.batch
        x = self.b.input_embedding()
        if self.spec.hparams.get("embedding_scale", self.default_embedding_scale) and not self.b.deepstack:
            x = g.like("SCALE", x)
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
        layers = frozenset(range(cached_layers(self.spec)))
        self.full = self._cache_inputs(batch.cells, layers - self.windowed)
        self.window = (
            self._cache_inputs(batch.window_cells, layers & self.windowed) if self.windowed else self.full
        )

    def _cache_inputs(self, cells: int, layers: frozenset[int]) -> CacheInputs:
        """Rows to write, mask to read, and the rotation before a quantised cache of these layers."""
        g, batch = self.g, self.batch
        return CacheInputs(
            cells=cells,
            rows_k=g.input(I64, batch.tokens),
            rows_v=g.input(I64, batch.tokens * (self.widest_value_row() if batch.v_transposed else 1)),
            mask=self.b.mask(cells),
            rotation_k=self._rotation(batch.kv_type_k.quantised, self.head_k, layers, largest=True),
            rotation_v=self._rotation(batch.kv_type_v.quantised, self.head_v, layers, largest=False),
        )

    def _rotation(
        self, quantised: bool, head: Callable[[int], int], layers: frozenset[int], *, largest: bool
    ) -> Node | None:
        """n_rot_k and n_rot_v of llama_kv_cache: none where the heads of its layers differ in size."""
        heads = {head(il) for il in layers}
        if not quantised or len(heads) != 1 or head(0) % 64:
            return None
        size = hadamard_size(heads.pop()) if largest else 64
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
        return self._head("key", il)

    def head_v(self, il: int) -> int:
        """Elements of a value head."""
        return self._head("value", il)

    def _head(self, half: str, il: int) -> int:
        default = self.spec.int_param("embedding_length") // max(1, self.heads(il))
        size = self.spec.int_param(f"attention.{half}_length", default)
        return (
            (self.spec.int_param(f"attention.{half}_length_swa", 0) or size) if il in self.windowed else size
        )

    def value_row(self, il: int) -> int:
        """Elements of V per cell."""
        return self.head_v(il) * self.kv_heads(il)

    def widest_value_row(self) -> int:
        """n_embd_v_gqa_max: without flash attention V is padded to it in every layer."""
        return max(self.value_row(il) for il in range(self.spec.layers))

    # -- the block --------------------------------------------------------------------------------------------------

    def norm(self, x: Node, name: str) -> Node:
        """build_norm with the architecture's kind of norm."""
        return self.b.norm(x, name, op=self.norm_op)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer: norm, attention, residual, norm, feed-forward, residual."""
        g, prefix = self.g, f"blk.{il}"
        residual = x
        cur = self.norm(x, f"{prefix}.attn_norm") if self.pre_norms else x
        cur = self.attention_of(cur, il)
        if self.rows_behind_norm:
            cur = self.post_norm(cur, prefix, _POST_ATTENTION)
        if last and not (self.late_rows or self.all_rows or self.batch.hidden):
            cur = g.get_rows(cur, self.out_ids)
            residual = g.get_rows(residual, self.out_ids)
        if self.scaled_branches:
            cur = g.like("SCALE", cur)
        if not self.rows_behind_norm:
            cur = self.post_norm(cur, prefix, _POST_ATTENTION)
        ffn_in = g.like("ADD", cur, residual)
        cur = self.second_branch(ffn_in, il)
        if self.scaled_branches:
            cur = g.like("SCALE", cur)
        cur = self.post_norm(cur, prefix, _POST_FFN)
        out = g.like("ADD", *((ffn_in, cur) if self.residual_first else (cur, ffn_in)))
        deepstack = self.b.deepstack
        return g.like("ADD", out, deepstack[il]) if il < len(deepstack) else out

    def post_norm(self, x: Node, prefix: str, names: tuple[str, ...]) -> Node:
        """The norm behind a branch, under the first of these names that the file has."""
        for name in names if self.post_norms else ():
            if self.b.has(f"{prefix}.{name}.weight"):
                return self.norm(x, f"{prefix}.{name}")
        return x

    def second_branch(self, x: Node, il: int) -> Node:
        """The norm and the feed-forward."""
        return self.feed_forward(self.norm(x, self._ffn_norm(f"blk.{il}")) if self.pre_norms else x, il)

    def _ffn_norm(self, prefix: str) -> str:
        # glm4moe and gpt-oss name the norm before the feed-forward "post_attention_norm"
        if self.b.has(f"{prefix}.ffn_norm.weight") or self.post_norms:
            return f"{prefix}.ffn_norm"
        return f"{prefix}.post_attention_norm"

    def attention_of(self, x: Node, il: int) -> Node:
        """The attention and its output projection."""
        return self.attention_output(self.heads_of(x, il), il)

    def heads_of(self, x: Node, il: int) -> Node:
        """build_qkv, norms and rope, build_attn."""
        q, k, v = self.qkv(x, il)
        q, k = self.positioned(q, k, il)
        if self.scaled_query:
            q = self.g.like("SCALE", q)
        return self.cached_attention(q, k, v, il)

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
            q = g.reshape(self.project(f"{prefix}.attn_q", x), head_k, heads, tokens)
            k = g.reshape(self.project(f"{prefix}.attn_k", x), head_k, kv_heads, tokens)
            v = g.reshape(self.project(f"{prefix}.attn_v", x), head_v, kv_heads, tokens)
        return q, k, v

    def project(self, name: str, x: Node) -> Node:
        """Q, K or V from a matrix of its own."""
        return self.b.mm(name, x)

    def positioned(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """Queries and keys normed, where there are norms, and rotated by their positions."""
        if not self.rope_before_norms:
            q, k = self.norms_of_heads(q, k, il)
        if il not in self.unrotated:
            q, k = self.rope(q, il), self.rope(k, il)
        return self.norms_of_heads(q, k, il) if self.rope_before_norms else (q, k)

    def rope(self, x: Node, il: int) -> Node:
        """ggml_rope_ext with get_rope_factors."""
        return self.b.rope(x, self.positions, self.b.rope_factors(il))

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

    def every_fourth_layer(self, first: int) -> frozenset[int]:
        """n_no_rope_layer_step: each fourth layer from `first`."""
        return frozenset(range(first, self.spec.layers, 4))

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:
        """build_attn for a plain KV cache, or for one of a pair with a sliding window (build_attn_inp_kv_iswa)."""
        b, g = self.b, self.g
        at = self.window if il in self.windowed else self.full
        if at.rotation_k is not None:
            q, k = b.rotate(q, at.rotation_k), b.rotate(k, at.rotation_k)
        if at.rotation_v is not None:
            v = b.rotate(v, at.rotation_v)
        if self.windowed:
            g.expand(q, k, v)
        else:
            g.expand(q, v, k)
        cache_k, cache_v = self.caches(at, il)
        b.store(cache_k, k, at.rows_k)
        (b.store_transposed if self.batch.v_transposed else b.store)(cache_v, v, at.rows_v)
        return self.read(q, at, il, il)

    def caches(self, at: CacheInputs, il: int) -> tuple[Node, Node]:
        """The K and V cache of a layer."""
        b, batch = self.b, self.batch
        row_v = self.widest_value_row() if batch.v_transposed else self.value_row(il)
        return (
            b.cache("k", batch.kv_type_k, self.head_k(il) * self.kv_heads(il), at.cells, il),
            b.cache("v", batch.kv_type_v, row_v, at.cells, il),
        )

    def read(self, q: Node, at: CacheInputs, il: int, owner: int) -> Node:
        """The attention of layer `il` over the cache of the layer `owner`."""
        b, kv_heads, head_k, head_v = self.b, self.kv_heads(il), self.head_k(il), self.head_v(il)
        cache_k, cache_v = self.caches(at, owner)
        sinks = b.maybe(f"blk.{il}.attn_sinks.weight")
        out = b.attention(
            q,
            b.read_k(cache_k, head_k, kv_heads, at.cells),
            b.read_v(cache_v, head_v, kv_heads, at.cells),
            at.mask,
            sinks=sinks,
            soft_cap=self.soft_caps,
            bias=self.score_bias,
        )
        return out if at.rotation_v is None else b.rotate(out, at.rotation_v)

    def feed_forward(self, x: Node, il: int) -> Node:
        """The dense branch, or the experts with the shared ones beside them."""
        prefix = f"blk.{il}"
        if not self.b.has(f"{prefix}.ffn_gate_inp.weight"):
            return self.b.ffn(x, prefix, clamped=self._clamped("swiglu_clamp_shexp", il))
        out = self.experts_of(x, il)
        if self.b.has(f"{prefix}.ffn_up_shexp.weight"):
            out = self.g.like("ADD", out, self.shared_experts(x, il))
        return out

    def _clamped(self, name: str, il: int) -> bool:
        limits = self.spec.hparams.get(name)
        return self.clamped_glu and bool(limits[il] if isinstance(limits, tuple) else limits)

    def shared_experts(self, x: Node, il: int) -> Node:
        """The experts that every token visits; Qwen gates them."""
        prefix = f"blk.{il}"
        out = self.b.ffn(x, prefix, "_shexp", clamped=self._clamped("swiglu_clamp_shexp", il))
        if self.b.has(f"{prefix}.ffn_gate_inp_shexp.weight"):
            gate = self.g.like("UNARY", self.b.mm(f"{prefix}.ffn_gate_inp_shexp", x))
            out = self.g.like("MUL", out, gate)
        return out

    def experts_of(self, x: Node, il: int) -> Node:
        """build_moe_ffn with the header's routing."""
        return self.experts_by(None, x, il)

    def experts_by(self, logits: Node | None, x: Node, il: int) -> Node:
        """The same with logits of a router that does not see `x`."""
        params = self.spec.hparams
        gating = self.fixed_gating or self.spec.int_param("expert_gating_func", 0) or self.default_gating
        fixed = self.fixed_normalise
        if fixed is None:
            fixed = _NORMALISES.get(self.spec.architecture)
        normalise = params.get("expert_weights_norm", self.default_normalise)
        scale = params.get("expert_weights_scale", 0.0)
        return moe(
            self.b,
            x,
            f"blk.{il}",
            used=self.spec.int_param("expert_used_count", layer=il),
            gating=_GATING.get(gating, "softmax"),
            normalise=bool(normalise if fixed is None else fixed),
            scale=scale not in (0, 1),
            groups=(
                self.spec.int_param("expert_group_count", 1),
                self.spec.int_param("expert_group_used_count", 1),
            ),
            logits=logits,
            weighs_input=self.weighs_input,
            scaled=self.spec.architecture in _EXPERT_SCALES,
            clamped=self._clamped("swiglu_clamp_exp", il),
            chosen=self.chosen_experts(il),
        )

    def chosen_experts(self, il: int) -> Node | None:  # noqa: ARG002 - for those that know some
        """Experts that the router does not choose."""
        return None

    default_gating = 1
    default_normalise = True

    # -- drafting --------------------------------------------------------------------------------------------------

    def drafting(self) -> type[Decoder]:
        """The class that builds the block for drafting, where the model's own layers are built otherwise."""
        return type(self)

    def draft(self, il: int) -> bool:  # noqa: ARG002 - for those that build it otherwise
        """Builds the graph of a block for drafting, where it is unlike the others'; whether it did."""
        return False

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """Final norm and logits; both stay allocated (set_outputs)."""
        g = self.g
        if self.normed_rows:
            x = self.norm(x, "output_norm")
        if self.late_rows:
            x.is_output = self.keeps_hidden
            x = g.get_rows(x, self.out_ids)
        if not self.normed_rows:
            x = self.norm(x, "output_norm")
        x.is_output = True
        if self.batch.hidden and not self.late_rows:
            x = g.get_rows(x, self.out_ids)
            x.is_output = True
        self.logits(x)

    def logits(self, x: Node) -> None:
        """The product with the head's matrix."""
        g = self.g
        logits = g.mul_mat(self.head_matrix(), g.like("SCALE", x) if self.scaled_head else x)
        if self.caps_logits():
            logits = self.b.capped(logits)
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
