"""GLM-5-Next: Kimi delta attention and sparse latent attention between hyper-connections.

Mirrors src/models/glm5-next.cpp and the sizes of src/llama-memory-hybrid-idx.cpp, llama.cpp b11434.
"""

from __future__ import annotations

from plan_llama.memory.batch import padded
from plan_llama.memory.blocks import Builder, UndescribedGraph
from plan_llama.memory.caches import owns_indexer
from plan_llama.memory.ggml import F16, F32, I32, I64, Node
from plan_llama.memory.graphs.decoder import Decoder
from plan_llama.memory.graphs.kimi3 import BoundedGates
from plan_llama.memory.graphs.streams import HyperConnected

_POOLS = 64  # kpool_pad
_GATHERED = 16  # with micro-batches up to this the selected cells are gathered instead of masked


class Glm5Next(HyperConnected, BoundedGates):
    """An indexer selects blocks of cells by a key for each block, made by a softmax over its cells."""

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.streams = self.spec.int_param("hyper_connection.count")
        self.key = self.spec.int_param("attention.indexer.key_length")
        self.selection: Node | None = None  # of the last layer with an indexer

    def drafting(self) -> type[Decoder]:
        """The engine has no graph for its block for drafting yet."""
        raise UndescribedGraph("the block for drafting of GLM-5-Next")

    # -- inputs -----------------------------------------------------------------------------------------------------

    def inputs(self) -> Node:
        """The embeddings, once for each stream."""
        g, tokens = self.g, self.batch.tokens
        x = super().inputs()
        return g.repeat(g.reshape(x, x.ne[0], 1, tokens), x.ne[0], self.streams, tokens, 1)

    def attention_inputs(self) -> None:
        """build_inp_mem_hybrid_k and build_inp_kpool: when the engine reserves, every block is a new one."""
        super().attention_inputs()
        g, batch, params = self.g, self.batch, self.spec.int_param
        top = params("attention.indexer.top_k")
        pool = self.pool = params("attention.indexer.kpool")
        small = not self.b.probing and batch.tokens <= _GATHERED
        self.gathers = small and batch.cells * batch.streams > top + pool - 1
        self.new_pools = batch.cells // pool * batch.sequences
        self.pools = max(_POOLS, padded(self.new_pools + 1, _POOLS))
        self.best = min(self.pools, top // pool)
        tail = bool(self.spec.hparams.get("attention.indexer.kpool_select_tail", True))
        self.selected = pool * self.best + (pool - 1 if tail else 0)
        self.rows_index = g.input(I64, batch.tokens)
        self.pool_cells = g.input(I32, self.pools)
        self.pool_members = g.input(I32, pool, self.pools)
        self.pool_mask = g.input(F16, self.pools, batch.tokens)
        self.tail = g.input(I32, pool - 1, batch.tokens)
        g.expand(self.pool_cells, self.pool_members, self.pool_mask, self.tail)
        self.live = g.input(F32, self.selected, 1, 1, batch.tokens)
        g.expand(self.live)
        self.new_members = g.input(I32, pool, self.new_pools)
        self.new_rows = g.input(I64, self.new_pools)

    # -- the block --------------------------------------------------------------------------------------------------

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked in the head
        """Attention and experts, each between narrowing and spreading."""
        b, prefix = self.b, f"blk.{il}"
        cur, post, comb = self.narrowed(x, f"{prefix}.hc_attn")
        x = self.spread(self.attention_of(b.norm(cur, f"{prefix}.attn_norm"), il), x, post, comb)
        cur, post, comb = self.narrowed(x, f"{prefix}.hc_ffn")
        return self.spread(self.feed_forward(b.norm(cur, f"{prefix}.ffn_norm"), il), x, post, comb)

    def feed_forward(self, x: Node, il: int) -> Node:
        """Dense, or experts beside shared ones."""
        prefix = f"blk.{il}"
        if not self.b.has(f"{prefix}.ffn_gate_inp.weight"):
            return self.plain_ffn(x, prefix)
        logits = self.g.mul_mat(self.b.w(f"{prefix}.ffn_gate_inp.weight"), x)
        return self.g.like("ADD", self.experts_by(logits, x, il), self.plain_ffn(x, prefix, "_shexp"))

    # -- sparse latent attention ------------------------------------------------------------------------------------

    def latent_attention(self, x: Node, il: int) -> Node:
        """build_dsa_layer: without rope; the mask is open for the selected cells."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}"
        tokens, heads = batch.tokens, self.heads(0)
        latent, head = (
            self.spec.int_param(f"attention.{name}") for name in ("kv_lora_rank", "key_length_mla")
        )
        low = b.norm(g.mul_mat(b.w(f"{prefix}.attn_q_a.weight"), x), f"{prefix}.attn_q_a_norm")
        q = g.reshape(g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), low), head, heads, tokens)
        kv = b.norm(g.mul_mat(b.w(f"{prefix}.attn_kv_a_mqa.weight"), x), f"{prefix}.attn_kv_a_norm")
        kv = g.reshape(kv, latent, 1, tokens)
        q = g.mul_mat(b.w(f"{prefix}.attn_k_b.weight"), g.permute(q, 0, 2, 1, 3))
        q = g.permute(q, 0, 2, 1, 3)
        if owns_indexer(self.spec, il):
            self.selection = self.select(x, low, il)
        if self.selection is None:
            raise UndescribedGraph("a layer without an indexer before all that have one")
        g.expand(q, kv)
        cache = b.cache("k", batch.kv_type_k, latent, batch.cells, il)
        b.store(cache, kv, self.rows_k)
        if self.gathers:
            out = self.gathered(q, cache, self.selection, f"{prefix}.attn_v_b.weight")
            return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), out)
        mask = g.reshape(self.selection, *self.mask.ne)
        k = b.read_k(cache, latent, 1, batch.cells)
        values = g.view(k, (latent, *k.ne[1:]), k.nb[1:])
        out = b.attention(q, k, values, mask, v_mla=b.w(f"{prefix}.attn_v_b.weight"))
        return g.mul_mat(b.w(f"{prefix}.attn_output.weight"), out)

    def gathered(self, q: Node, cache: Node, cells: Node, v_b: str) -> Node:
        """Attention of each token over the rows that are selected for it, whatever --flash-attn says."""
        g, tokens, selected = self.g, self.batch.tokens, self.selected
        g.expand(self.mask)
        rows = g.view(cache, (cache.ne[0], cache.ne[1] * cache.ne[2]), (cache.nb[1],))
        k = g.get_rows(rows, g.reshape(cells, selected * tokens))
        k = g.reshape(k, cache.ne[0], selected, 1, tokens)
        scores = g.mul_mat(k, g.permute(q, 0, 2, 3, 1))
        scores.precise = True
        weights = g.soft_max(scores, self.live)
        out = g.mul_mat(g.cont(g.transpose(k)), weights)
        out = g.mul_mat(self.b.w(v_b), out)
        out = g.cont(g.permute(out, 0, 2, 1, 3))
        return g.reshape(out, out.ne[0] * out.ne[1], tokens)

    def pooled_keys(self, x: Node, il: int) -> Node:
        """Key and gate of every token into the cache, the key of each new block beside them; the keys of all blocks."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        size, pool, new, tokens = self.key, self.pool, self.new_pools, self.batch.tokens
        raw = g.mul_mat(b.w(f"{prefix}.indexer.attn_k.weight"), x)
        raw = b.norm(raw, f"{prefix}.indexer.k_norm", op="NORM")
        gates = g.mul_mat(b.w(f"{prefix}.indexer_compressor_gate.weight"), x)
        packed = g.concat(g.concat(raw, gates, 0), b.filled(size, tokens), 0)
        cache = b.cache("index", self.batch.kv_type_k, 3 * size, self.batch.cells, il)
        b.store(cache, g.reshape(packed, 3 * size, 1, tokens), self.rows_index)
        cells = cache.ne[1] * cache.ne[2]
        both, keys = (g.view(cache, (part * size, cells), (cache.nb[1],)) for part in (2, 1))
        rows = g.reshape(g.get_rows(both, g.reshape(self.new_members, pool * new)), 2 * size, pool, new)
        key, gate = (g.view(rows, (size, pool, new), rows.nb[1:3]) for _ in range(2))
        scores = g.like("ADD", gate, b.w(f"{prefix}.indexer_compressor_ape.weight"))
        scores = g.cont(g.permute(scores, 1, 0, 2, 3))
        weights = g.reshape(g.soft_max(g.reshape(scores, pool, size * new)), pool, size, new)
        key = g.cont(g.permute(key, 1, 0, 2, 3))
        pooled = g.reshape(g.sum_rows(g.like("MUL", weights, key)), size, new)
        g.expand(g.set_rows(keys, pooled, self.new_rows))
        return g.reshape(g.get_rows(keys, self.pool_cells), size, 1, self.pools)

    def select(self, x: Node, low: Node, il: int) -> Node:
        """build_kpool_select: the cells of the best blocks and the tail, or the mask that is open for them."""
        b, g, prefix = self.b, self.g, f"blk.{il}.indexer"
        heads, tokens = self.spec.int_param("attention.indexer.head_count"), self.batch.tokens
        q = g.reshape(g.mul_mat(b.w(f"{prefix}.attn_q_b.weight"), low), self.key, heads, tokens)
        keys = self.pooled_keys(x, il)
        weights = g.like("SCALE", g.mul_mat(b.w(f"{prefix}.proj.weight"), x))
        chosen = self.chosen(g.lightning_indexer(q, keys, weights, self.pool_mask))
        if self.gathers:
            return chosen
        g.expand(chosen)
        selected, mask = self.selected, self.mask
        wide = mask.ne[0] + selected
        closed = g.repeat(b.filled(wide, kind=mask.type), wide, tokens, 1, 1)
        closed = g.reshape(closed, 1, wide, tokens)
        zeros = g.repeat(b.filled(selected, kind=mask.type), selected, tokens, 1, 1)
        zeros = g.reshape(zeros, 1, selected, tokens)
        live = g.like("UNARY", g.reshape(self.live, selected, tokens))
        dump = Node("ARANGE", F32, (selected, 1, 1, 1), [])
        rows = g.like("MUL", g.like("SUB", g.cast(chosen, F32), dump), live)
        rows = g.cast(g.like("ADD", rows, dump), I32)
        opened = g.set_rows(closed, zeros, g.reshape(rows, selected, tokens, 1))
        opened = g.view(opened, (mask.ne[0], tokens), (opened.nb[2],))
        return g.like("ADD", opened, g.reshape(mask, mask.ne[0], tokens))

    def chosen(self, scores: Node) -> Node:
        """The cells of the best blocks, best first, and those behind the last whole block."""
        g, best, tokens = self.g, self.best, self.batch.tokens
        top = g.top_k(scores, best)
        found = g.get_rows(g.reshape(scores, 1, self.pools, tokens), top)
        found = g.reshape(found, best, tokens)
        order = Node("ARGSORT", I32, found.ne, [found])
        top = g.get_rows(g.reshape(g.cast(top, F32), 1, best, tokens), order)
        top = g.cast(g.cont(g.reshape(top, best, tokens)), I32)
        cells = g.get_rows(self.pool_members, g.reshape(top, best * tokens))
        cells = g.reshape(cells, self.pool * best, tokens)
        return g.concat(cells, self.tail, 0) if self.selected > self.pool * best else cells

    # -- the head ---------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """The wanted rows of all streams, their mean, final norm and logits."""
        b, g, width = self.b, self.g, x.ne[0]
        if not self.batch.hidden:
            rows = g.get_rows(g.reshape(x, width * self.streams, x.ne[2]), self.out_ids)
            x = g.reshape(rows, width, self.streams, rows.ne[1])
        parts = [g.view(x, (width, x.ne[2]), (x.nb[2],)) for _ in range(self.streams)]
        total = parts[0]
        for part in parts[1:]:
            total = g.like("ADD", total, part)
        x = b.norm(g.like("SCALE", total), "output_norm")
        x.is_output = True
        if self.batch.hidden:
            x = g.get_rows(x, self.out_ids)
            x.is_output = True
        self.logits(x)
