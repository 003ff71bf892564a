"""MiniMax-M3: attention over the blocks of a cache that an indexer chooses for each group of heads.

Mirrors src/models/minimax-m3.cpp and build_attn_inp_kv_msa (src/llama-graph.cpp) of llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.batch import padded
from plan_llama.memory.ggml import F16, F32, I32, I64, Node
from plan_llama.memory.graphs.decoder import Decoder

# llama_kv_cache_msa_context::get_n_pos of an empty cache: what the reservation sees. While a server runs, it follows
# the positions, and the buffers grow with them (Batch.grown).
_POSITIONS = 256


class MiniMaxM3(Decoder):
    """The layers behind the first choose blocks, with flash attention and where no cache is shared by several slots."""

    default_gating = 2

    def attention_inputs(self) -> None:
        """build_attn_inp_kv_msa, and what all sparse layers share."""
        super().attention_inputs()
        g, batch = self.g, self.batch
        self.sparse = batch.flash_attn and (batch.sequences == 1 or batch.streams > 1)
        if not self.sparse:
            return
        self.block_size = self.spec.int_param("attention.indexer.block_size")
        self.positions_padded = padded(batch.cells if batch.grown else _POSITIONS, self.block_size)
        self.blocks = self.positions_padded // self.block_size
        self.rows_index = g.input(I64, batch.tokens)
        self.bias = g.input(F32, self.blocks, batch.tokens)
        self.visible = g.input(F32, self.positions_padded, batch.tokens)
        self.cell_of = g.input(I32, self.positions_padded, batch.streams)
        self.block_of = g.input(I32, batch.cells, batch.streams)
        self.mask_f32 = g.cast(self.full.mask, F32)

    def cached_attention(self, q: Node, k: Node, v: Node, il: int) -> Node:
        """Over all cells, or over chosen blocks."""
        if not self.sparse or il < self.spec.int_param("leading_dense_block_count"):
            return super().cached_attention(q, k, v, il)
        b, g, batch, at = self.b, self.g, self.batch, self.full
        index = self.index_query
        if at.rotation_k is not None:
            q, k = b.rotate(q, at.rotation_k), b.rotate(k, at.rotation_k)
        if at.rotation_v is not None:
            v = b.rotate(v, at.rotation_v)
        g.expand(q, k, v)
        cache_k, cache_v = self.caches(at, il)
        b.store(cache_k, k, at.rows_k)
        b.store(cache_v, v, at.rows_v)
        out: Node | None = None
        for _ in range(batch.streams):
            part = self.stream(q, cache_k, cache_v, index, il)
            out = part if out is None else g.concat(out, part, 1)
        assert out is not None, "at least one stream"  # noqa: S101 - for the type checker
        return out if at.rotation_v is None else b.rotate(out, at.rotation_v)

    def attention_of(self, x: Node, il: int) -> Node:
        """The keys of the indexer are stored before everything else of a layer."""
        if self.sparse and il >= self.spec.int_param("leading_dense_block_count"):
            self.index_query = self.indexed(x, il)
        return super().attention_of(x, il)

    def indexed(self, x: Node, il: int) -> tuple[Node, Node]:
        """Query and cached keys of the indexer."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}.indexer"
        size = self.spec.int_param("attention.indexer.key_length")
        heads = self.spec.int_param("attention.indexer.head_count")
        q = g.reshape(b.mm(f"{prefix}.q_proj", x), size, heads, batch.tokens)
        k = g.reshape(b.mm(f"{prefix}.k_proj", x), size, 1, batch.tokens)
        q = b.rope(b.norm(q, f"{prefix}.q_norm"), self.positions)
        k = b.rope(b.norm(k, f"{prefix}.k_norm"), self.positions)
        cache = b.cache("index", batch.kv_type_k, size, batch.cells, il)
        b.store(cache, k, self.rows_index)
        return q, b.read_k(cache, size, 1, batch.cells)

    def stream(self, q: Node, cache_k: Node, cache_v: Node, index: tuple[Node, Node], il: int) -> Node:
        """One stream: attention with a mask for each group of heads."""
        b, g, batch = self.b, self.g, self.batch
        groups, cells, tokens = self.kv_heads(il), batch.cells, batch.tokens // batch.streams
        head, heads = self.head_k(il), self.heads(il)
        mask = self.chosen(index, groups, tokens)
        q = g.view(q, (head, heads, tokens), q.nb[1:3])
        q = g.permute(g.reshape(q, head, heads // groups, groups, tokens), 0, 2, 3, 1)
        k = b.read_k(cache_k, head, groups, cells)
        v = b.read_k(cache_v, head, groups, cells)
        k, v = (g.permute(g.view(c, (head, groups, cells, 1), c.nb[1:]), 0, 3, 1, 2) for c in (k, v))
        out = g.permute(g.flash_attn(q, k, v, mask, None), 0, 1, 3, 2)
        if groups > 1 and tokens > 1:
            out = g.cont(out)
        return g.reshape(out, head * heads, tokens)

    def chosen(self, index: tuple[Node, Node], groups: int, tokens: int) -> Node:
        """Scores of blocks, the best of them, and the mask that leaves their cells open."""
        g, cells, blocks, size = self.g, self.batch.cells, self.blocks, self.block_size
        q, keys = index
        width, positions = q.ne[0], self.positions_padded
        q = g.view(q, (width, groups, tokens), q.nb[1:3])
        keys = g.view(keys, (width, cells), (keys.nb[2],))
        keys = g.get_rows(keys, g.view(self.cell_of, (positions,), ()))
        scores = g.mul_mat(keys, g.reshape(q, width, groups * tokens))
        scores = g.reshape(scores, positions, groups, tokens)
        nb = self.visible.nb[1]
        scores = g.in_place("ADD", scores, g.view(self.visible, (positions, 1, tokens), (nb, nb)))
        best = Node("POOL_2D", F32, (positions // size, groups, tokens, 1), [scores])
        nb = self.bias.nb[1]
        bias = g.view(self.bias, (blocks, 1, tokens), (nb, nb))
        wanted = min(self.spec.int_param("attention.indexer.top_k"), blocks)
        chosen = g.top_k(g.like("ADD", best, bias), wanted)
        closed = g.repeat(g.cast(g.like("SCALE", bias), F16), blocks, groups, tokens, 1)
        zeros = g.like("SCALE", g.cast(chosen, F32))
        opened = g.set_rows(
            g.reshape(closed, 1, blocks, groups * tokens),
            g.reshape(zeros, 1, wanted, groups * tokens),
            g.reshape(chosen, wanted, groups * tokens),
        )
        opened = g.permute(g.reshape(opened, blocks, groups, tokens), 0, 2, 1, 3)
        opened = g.reshape(g.cont(opened), blocks, tokens * groups)
        opened = g.get_rows(g.cont(g.transpose(opened)), g.view(self.block_of, (cells,), ()))
        opened = g.reshape(g.cont(g.transpose(opened)), cells, tokens, groups)
        mask = g.view(self.mask_f32, (cells, tokens, 1), (self.mask_f32.nb[1], self.mask_f32.nb[3]))
        opened = g.in_place("ADD", opened, mask)
        return g.cast(g.reshape(opened, cells, tokens, 1, groups), F16)
