"""Graphs with latent attention (MLA): DeepSeek-V2 and V3 and what descends from them, with or without an indexer.

Mirrors src/models/deepseek2.cpp, minicpm3.cpp, deepseek32.cpp, glm-dsa.cpp and dots3note.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.blocks import UndescribedGraph, hadamard_size
from plan_llama.memory.ggml import F16, F32, I64, Node
from plan_llama.memory.graphs.decoder import Decoder


class Expanded(Decoder):
    """Latent attention that projects K and V of every head back before it caches them: older files of DeepSeek-V2
    (the branch without is_mla in src/models/deepseek2.cpp).
    """

    default_normalise = False

    def query(self, x: Node, prefix: str) -> tuple[Node, Node]:
        """The normed low-rank query and the query, which small models project in one step."""
        b, g = self.b, self.g
        if not b.has(f"{prefix}.attn_q_a.weight"):
            return x, g.mul_mat(b.w(f"{prefix}.attn_q.weight"), x)
        low = b.norm(g.mul_mat(b.w(f"{prefix}.attn_q_a.weight"), x), f"{prefix}.attn_q_a_norm")
        return low, g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), low)

    def attention_of(self, x: Node, il: int) -> Node:
        """Every head's K is its own part and the shared rotated one; Q is rotated in its trailing elements."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        heads, head_k, head_v = self.heads(il), self.head_k(il), self.head_v(il)
        latent = self.spec.int_param("attention.kv_lora_rank")
        rope = self.spec.int_param("rope.dimension_count")
        factors = b.rope_factors(il)
        q = b.rope(g.reshape(self.query(x, prefix)[1], head_k, heads, tokens), self.positions, factors)
        compressed = g.mul_mat(b.w(f"{prefix}.attn_kv_a_mqa.weight"), x)
        k_pe = g.view(compressed, (rope, 1, tokens), (compressed.nb[1], compressed.nb[1]))
        k_pe = g.repeat(b.rope(k_pe, self.positions, factors), rope, heads, tokens, 1)
        kv = g.view(compressed, (latent, tokens), (compressed.nb[1],))
        kv = g.mul_mat(b.w(f"{prefix}.attn_kv_b.weight"), b.norm(kv, f"{prefix}.attn_kv_a_norm"))
        row = kv.type.nbytes(head_k - rope + head_v)
        k = g.concat(g.view(kv, (head_k - rope, heads, tokens), (row, row * heads)), k_pe, 0)
        v = g.cont(g.view(kv, (head_v, heads, tokens), (row, row * heads)))
        return b.mm(f"{prefix}.attn_output", self.cached_attention(q, k, v, il))


class MiniCpm3(Expanded):
    """Scaled embeddings, branches and logits (src/models/minicpm3.cpp)."""

    scaled_branches = True
    scaled_head = True

    def inputs(self) -> Node:
        """The token rows are scaled."""
        return self.g.like("SCALE", super().inputs())

    def feed_forward(self, x: Node, il: int) -> Node:
        """Without the scales that a file may have beside its weights: the engine passes over them here."""
        g, up, gate, down = (
            self.g,
            *(self.b.w(f"blk.{il}.ffn_{part}.weight") for part in ("up", "gate", "down")),
        )
        wide = g.mul_mat(up, x)
        return g.mul_mat(down, g.glu(g.mul_mat(gate, x), wide))


class Latent(Expanded):
    """Multi-head latent attention over a K-only cache (src/models/deepseek2.cpp)."""

    def attention_inputs(self) -> None:
        """build_attn_inp_k; build_attn_inp_kv for older files, which have no absorbed projections."""
        self.temperature: Node | None = None
        if self.spec.hparams.get("attention.temperature_scale"):
            self.temperature = self.g.input(F32, 1, 1, self.batch.tokens)
        if not self.is_absorbed():
            super().attention_inputs()
            return
        self.rows_k = self.g.input(I64, self.batch.tokens)
        self.mask = self.b.mask(self.batch.cells)

    def is_absorbed(self) -> bool:
        """llama_hparams::is_mla."""
        return bool(self.spec.int_param("attention.key_length_mla", 0))

    def scaled(self, query: Node) -> Node:
        """The query of a model whose attention has a temperature (Mistral Large 3)."""
        return query if self.temperature is None else self.g.like("MUL", query, self.temperature)

    def read_mask(self, query: Node, x: Node, il: int) -> None:
        """What a layer does between its first projection and the queries: an indexer, where there is one."""

    def mask_for(self, il: int) -> Node:  # noqa: ARG002 - for those whose layers differ
        """The mask that attention reads."""
        return self.mask

    def cache_of(self, il: int) -> tuple[Node, int]:  # noqa: ARG002 - as above
        """Rows to write and cells of a layer's cache."""
        return self.rows_k, self.batch.cells

    def latent_sizes(self, il: int) -> tuple[int, int]:  # noqa: ARG002 - as above
        """Elements of the latent K and of a query head."""
        return self.spec.int_param("attention.kv_lora_rank"), self.spec.int_param("attention.key_length_mla")

    def behind_attention(self, out: Node, x: Node, il: int) -> Node:  # noqa: ARG002 - for those that gate
        """The output projection."""
        return self.b.mm(f"blk.{il}.attn_output", out)

    def attention_of(self, x: Node, il: int) -> Node:
        """Query and key in latent form, attention, and the way back from it."""
        if not self.is_absorbed():
            return super().attention_of(x, il)
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}"
        tokens = batch.tokens
        heads = self.heads(il)
        latent, head = self.latent_sizes(il)
        rope = self.spec.int_param("rope.dimension_count")
        low, q = self.query(x, prefix)
        self.read_mask(low, x, il)
        q_strides = (q.type.nbytes(head), q.type.nbytes(head) * heads)
        q_nope = g.view(q, (head - rope, heads, tokens), q_strides)
        q_pe = g.view(q, (rope, heads, tokens), q_strides)
        compressed = g.mul_mat(b.w(f"{prefix}.attn_kv_a_mqa.weight"), x)
        row = compressed.type.nbytes(latent + rope)
        kv = g.view(compressed, (latent, tokens), (row,))
        k_pe = g.view(compressed, (rope, 1, tokens), (row, row))
        if b.has(f"{prefix}.attn_k_norm.weight"):
            k_pe = b.norm(k_pe, f"{prefix}.attn_k_norm")
        q_pe = b.rope(q_pe, self.positions)
        k_pe = b.rope(k_pe, self.positions)
        kv = b.norm(kv, f"{prefix}.attn_kv_a_norm")
        absorbed = g.mul_mat(b.w(f"{prefix}.attn_k_b.weight"), g.permute(q_nope, 0, 2, 1, 3))
        query = self.scaled(g.concat(g.permute(absorbed, 0, 2, 1, 3), q_pe, 0))
        kv = g.reshape(kv, latent, 1, tokens)
        key = g.concat(kv, k_pe, 0)
        g.expand(query, kv, key)
        rows, cells = self.cache_of(il)
        cache = b.cache("k", batch.kv_type_k, latent + rope, cells, il)
        b.store(cache, key, rows)
        mask = self.mask_for(il)
        k = b.read_k(cache, latent + rope, 1, cells)
        v = g.view(k, (latent, *k.ne[1:]), k.nb[1:])
        sinks = b.maybe(f"{prefix}.attn_sinks.weight")
        out = b.attention(query, k, v, mask, sinks=sinks, v_mla=b.w(f"{prefix}.attn_v_b.weight"))
        return self.behind_attention(out, x, il)


class GlmDsa(Latent):
    """DeepSeek-V3.2 and GLM-5: latent attention over the cells that an indexer selects (src/models/deepseek32.cpp,
    glm-dsa.cpp).
    """

    default_gating = 2
    rotates_index = True  # queries and keys of the indexer are rotated

    def drafting(self) -> type[Decoder]:
        """The block for drafting attends to all cells."""
        return Drafting

    def attention_inputs(self) -> None:
        """build_attn_inp_k_dsa: rows and mask of the latent cache, and the same for the indexer's."""
        self.temperature = None
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

    def read_mask(self, query: Node, x: Node, il: int) -> None:
        """A layer with an indexer selects; one without takes the selection of the layer before."""
        if self.has_indexer(il):
            self.selected = self._index(query, x, il)

    def mask_for(self, il: int) -> Node:  # noqa: ARG002 - as above
        """Open only for the selected cells."""
        return self._selected_mask()

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
        if self.rotates_index:
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


class Dots3Note(GlmDsa):
    """An indexer in the layers that see everything, windows with a latent K of their own in the others; the output of
    every head is gated (src/models/dots3note.cpp).
    """

    default_normalise = False

    def drafting(self) -> type[Decoder]:
        """Its block for drafting attends to a window; an upper bound is taken."""
        raise UndescribedGraph("the block for drafting of dots3-note")

    def attention_inputs(self) -> None:
        """build_attn_inp_k_dsa_iswa."""
        super().attention_inputs()
        self.rows_window = self.g.input(I64, self.batch.tokens)
        self.mask_window = self.b.mask(self.batch.window_cells)

    def has_indexer(self, il: int) -> bool:
        """Layers without a window."""
        return il not in self.windowed

    def mask_for(self, il: int) -> Node:
        """The window, or the cells that are selected."""
        return self.mask_window if il in self.windowed else super().mask_for(il)

    def cache_of(self, il: int) -> tuple[Node, int]:
        """The window's, or the whole."""
        return (self.rows_window, self.batch.window_cells) if il in self.windowed else super().cache_of(il)

    def latent_sizes(self, il: int) -> tuple[int, int]:
        """Layers with a window have their own."""
        if il not in self.windowed:
            return super().latent_sizes(il)
        names = ("attention.kv_lora_rank_swa", "attention.key_length_mla_swa")
        return self.spec.int_param(names[0]), self.spec.int_param(names[1])

    def behind_attention(self, out: Node, x: Node, il: int) -> Node:
        """A gate for every head, then the projection."""
        g, heads, tokens = self.g, self.heads(il), self.batch.tokens
        gate = g.like("UNARY", g.mul_mat(self.b.w(f"blk.{il}.attn_gate.weight"), x))
        wide = g.reshape(out, out.ne[0] // heads, heads, tokens)
        wide = g.like("MUL", wide, g.reshape(gate, 1, heads, tokens))
        return super().behind_attention(g.reshape(wide, out.ne[0], tokens), x, il)


class Drafting(Latent):
    """The block for drafting of DeepSeek-V3.2 and GLM-5 (graph_mtp in src/models/deepseek32.cpp, glm-dsa.cpp)."""

    default_gating = 2


class DeepseekOcr(Decoder):
    """The same with plain attention (the branch is_ocr in src/models/deepseek2.cpp)."""

    default_normalise = False
