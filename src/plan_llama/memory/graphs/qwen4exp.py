"""The graph of the experimental Qwen4: parallel residual streams, n-gram embeddings, attention over pooled blocks.

Mirrors src/models/qwen4exp.cpp and the sizes of src/llama-memory-hybrid-idx.cpp, llama.cpp b11434.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from plan_llama.memory.batch import padded
from plan_llama.memory.ggml import F16, F32, I32, I64, Node
from plan_llama.memory.graphs.delta_net import DeltaNet

_POOLS = 64  # kpool_pad


class Qwen4Exp(DeltaNet):
    """Delta nets and sparse attention between hyper-connections (src/models/qwen4exp.cpp)."""

    # -- inputs -------------------------------------------------------------------------------------------------------

    def inputs(self) -> Node:
        """The embeddings, once for each stream; the rows of the n-gram table."""
        g, params, tokens = self.g, self.spec.int_param, self.batch.tokens
        x = super().inputs()
        self.streams = params("hyper_connection.count")
        listed = self.spec.hparams.get("ple.layers")
        self.with_ngrams = frozenset(listed) if isinstance(listed, tuple) else frozenset()
        if self.with_ngrams:
            heads = (params("ple.ngram_size") - 1) * params("ple.heads_per_ngram")
            table = self.b.w("per_layer_token_embd.weight")
            rows = g.get_rows(table, g.input(I32, heads * tokens))
            self.ngrams = g.reshape(rows, table.ne[0] * heads, tokens)
            g.expand(self.ngrams)
        x = g.repeat(g.reshape(x, x.ne[0], 1, tokens), x.ne[0], self.streams, tokens, 1)
        g.expand(x)
        return x

    def attention_inputs(self) -> None:
        """build_inp_mem_hybrid, and build_inp_kpool: the blocks of cells that share a key."""
        super().attention_inputs()
        g, batch = self.g, self.batch
        ratios = self.spec.hparams.get("attention.compress_ratios")
        listed = ratios if isinstance(ratios, tuple) else (ratios,) * self.spec.layers
        self.pooled = frozenset(il for il in range(self.spec.layers) if il < len(listed) and listed[il])
        if not self.pooled:
            return
        self.pool = self.spec.int_param("attention.compress_ratios")
        self.new_pools = batch.cells // self.pool * batch.sequences
        self.pools = max(_POOLS, padded(self.new_pools + 1, _POOLS))
        best = min(self.pools, self.spec.int_param("attention.indexer.top_k") // self.pool)
        self.best_pools, self.selected = best, self.pool * best + self.pool - 1
        self.rows_index = g.input(I64, batch.tokens)
        self.pool_cells = g.input(I32, self.pools)
        self.pool_members = g.input(I32, self.pool, self.pools)
        self.pool_mask = g.input(F16, self.pools, batch.tokens)
        self.tail = g.input(I32, self.pool - 1, batch.tokens)
        g.expand(self.pool_cells, self.pool_members, self.pool_mask, self.tail)
        self.new_members = g.input(I32, self.pool, self.new_pools)
        self.new_rows = g.input(I64, self.new_pools)
        self.new_positions = g.input(I32, 4 * self.new_pools)

    # -- the block ----------------------------------------------------------------------------------------------------

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Mix the streams, attention, spread it over them; the same around the experts."""
        g, prefix = self.g, f"blk.{il}"
        if il in self.with_ngrams:
            x = self.with_ngram(x, il)
        cur, inject = self.mixed(x, f"{prefix}.hc_attn"), self.injected
        cur = self.attention_of(cur, il)
        if last:
            cur, inject = g.get_rows(cur, self.out_ids), g.get_rows(inject, self.out_ids)
            flat = g.get_rows(g.reshape(x, x.ne[0] * x.ne[1], x.ne[2]), self.out_ids)
            x = g.reshape(flat, x.ne[0], x.ne[1], flat.ne[1])
        x = self.combined(x, cur, inject)
        cur, inject = self.mixed(x, f"{prefix}.hc_ffn"), self.injected
        return self.combined(x, self.feed_forward(cur, il), inject)

    def grouped_norm(self, x: Node, name: str) -> Node:
        """A norm of each stream by itself."""
        return self.g.like("MUL", self.g.like("RMS_NORM", x), self.b.w(f"{name}.weight"))

    def mixed(self, x: Node, name: str) -> Node:
        """build_hc_mix: one stream of many, by a low-rank gate; `injected` is how the result is spread again."""
        b, g = self.b, self.g
        width, streams, tokens = x.ne[:3]
        x = g.reshape(self.grouped_norm(x, f"{name}_norm"), width * streams, tokens)
        low = g.like("UNARY", g.like("SCALE", g.mul_mat(b.w(f"{name}_down.weight"), x)))
        gate = g.mul_mat(b.w(f"{name}_up.weight"), low)
        if name == "output_hc":  # outside the layers not in one op
            gated = g.reshape(g.like("MUL", x, g.like("UNARY", gate)), width, streams, tokens)
            parts = [g.view(gated, (width, tokens), (gated.nb[2],)) for _ in range(streams)]
            out = g.cont(parts[0])
            for part in parts[1:]:
                out = g.like("ADD", out, part)
            return g.like("SCALE", out)
        self.injected = g.mul_mat(b.w(f"{name}_inject.weight"), x)
        shape = (width, streams, tokens)
        return Node(
            "DSV4_HC_PRE", F32, (width, tokens, 1, 1), [g.reshape(x, *shape), g.reshape(gate, *shape)]
        )

    def combined(self, x: Node, branch: Node, inject: Node) -> Node:
        """build_hc_combine: a branch's result, added to every stream with a weight."""
        g = self.g
        weights = g.like("SCALE", g.like("UNARY", g.like("SCALE", inject)))
        return Node("DSV4_HC_POST", F32, x.ne, [branch, x, weights])

    def conv_step(self, before: Node, x: Node, il: int) -> Node:
        """As elsewhere, but the last inputs are made contiguous first."""
        return self.kept_conv(self.conv_cache(il), before, x)

    def kept_conv(self, cache: Node, before: Node, x: Node) -> Node:
        """build_conv_state_at."""
        g = self.g
        conv = g.concat(before, g.transpose(x), 0)
        self.store_state(cache, g.cont(g.view(conv, before.ne[:3], conv.nb[1:3])))
        return conv

    # -- n-gram embeddings --------------------------------------------------------------------------------------------

    def with_ngram(self, x: Node, il: int) -> Node:
        """build_ple: gated rows of the n-gram table, and a dilated convolution over them."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        width, streams, tokens = x.ne[:3]
        key = g.mul_mat(b.w(f"{prefix}.ple_key.weight"), self.ngrams)
        value = g.mul_mat(b.w(f"{prefix}.ple_value.weight"), self.ngrams)
        key = self.grouped_norm(g.reshape(key, width, streams, tokens), f"{prefix}.ple_norm_key")
        query = self.grouped_norm(g.reshape(x, width, streams, tokens), f"{prefix}.ple_norm_query")
        match = g.like("SCALE", g.sum_rows(g.like("MUL", key, query)))
        size = g.like("SQRT", g.like("CLAMP", g.like("UNARY", match)))
        gate = g.like("UNARY", g.like("MUL", g.like("UNARY", match), size))
        value = g.repeat(g.reshape(value, width, 1, tokens), width, streams, tokens, 1)
        gated = g.like("MUL", value, gate)
        flat = g.reshape(gated, width * streams, tokens)
        normed = self.grouped_norm(g.reshape(flat, width, streams, tokens), f"{prefix}.ple_norm_conv")
        normed = g.reshape(normed, width * streams, tokens)
        out = self.dilated(self.per_sequence(normed), il)
        out = g.reshape(g.cont(g.like("UNARY", out)), width, streams, tokens)
        return g.like("ADD", x, g.like("ADD", gated, out))

    def dilated(self, x: Node, il: int) -> Node:
        """A causal convolution whose taps lie as far apart as an n-gram is long, as a sum of shifted copies."""
        b, g = self.b, self.g
        channels = x.ne[0]
        kernel = b.w(f"blk.{il}.ple_conv1d.weight")
        history = (kernel.ne[0] - 1) * self.spec.int_param("ple.ngram_size")
        cache = b.state("p", history * channels, il)
        before = g.reshape(self.load_state(cache), history, channels, self.sequences)
        conv = self.kept_conv(cache, before, x)
        total: Node | None = None
        for _ in range(kernel.ne[0]):
            tap = g.view(conv, (self.tokens_each, channels, self.sequences), conv.nb[1:3])
            weights = g.reshape(g.cont(g.view(kernel, (1, channels), (kernel.nb[1],))), channels)
            if weights.type != F32:
                weights = g.cast(weights, F32)
            term = g.like("MUL", g.cont(g.transpose(tap)), weights)
            total = term if total is None else g.like("ADD", total, term)
        assert total is not None  # noqa: S101 - a kernel has taps
        return total

    # -- sparse attention -------------------------------------------------------------------------------------------

    def gated_attention(self, x: Node, il: int) -> Node:
        """Attention over the selected blocks, where the layer has an indexer."""
        if il not in self.pooled:
            return super().gated_attention(x, il)
        plain = self.full
        shape = plain.mask.ne
        self.full = replace(plain, mask=self.g.reshape(self.selection(x, il), *shape))
        out = super().gated_attention(x, il)
        self.full = plain
        return out

    def new_keys(self, x: Node, il: int) -> Node:
        """The raw keys into the cache, the mean of each block beside them; the keys of all blocks."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}.indexer"
        size, pool, tokens = self.spec.int_param("attention.indexer.key_length"), self.pool, batch.tokens
        raw = g.mul_mat(b.w(f"{prefix}.k_proj.weight"), x)
        packed = g.reshape(g.concat(raw, b.filled(size, tokens), 0), 2 * size, 1, tokens)
        cache = b.cache("index", batch.kv_type_k, 2 * size, batch.cells, il)
        b.store(cache, packed, self.rows_index)
        halves = [g.view(cache, (size, cache.ne[1] * cache.ne[2]), (cache.nb[1],)) for _ in range(2)]
        rows = g.get_rows(halves[0], g.reshape(self.new_members, pool * self.new_pools))
        rows = g.reshape(rows, size, pool, self.new_pools)
        members = [g.view(rows, (size, self.new_pools), (rows.nb[2],)) for _ in range(pool)]
        mean = g.cont(members[0])
        for member in members[1:]:
            mean = g.like("ADD", mean, member)
        mean = b.norm(g.like("SCALE", mean), f"{prefix}.k_norm")
        mean = b.rope(g.reshape(mean, size, 1, self.new_pools), self.new_positions)
        g.expand(g.set_rows(halves[1], g.reshape(mean, size, self.new_pools), self.new_rows))
        return g.reshape(g.get_rows(halves[1], self.pool_cells), size, 1, self.pools)

    def selection(self, x: Node, il: int) -> Node:
        """build_qsa_sel: the mask, open for the best blocks and the tail."""
        b, g, batch, prefix = self.b, self.g, self.batch, f"blk.{il}.indexer"
        size, heads = (
            self.spec.int_param(f"attention.indexer.{key}") for key in ("key_length", "head_count")
        )
        tokens, pool, best, selected = batch.tokens, self.pool, self.best_pools, self.selected
        keys = self.new_keys(x, il)
        q = g.reshape(g.mul_mat(b.w(f"{prefix}.q_proj.weight"), x), size, heads, tokens)
        q = b.rope(b.norm(q, f"{prefix}.q_norm"), self.positions)
        scores = g.lightning_indexer(q, keys, b.filled(heads, tokens), self.pool_mask)
        top = g.top_k(scores, best)
        chosen = g.get_rows(self.pool_members, g.reshape(top, best * tokens))
        chosen = g.concat(g.reshape(chosen, pool * best, tokens), self.tail, 0)
        g.expand(chosen)
        mask = self.full.mask
        wide = mask.ne[0] + selected
        closed = b.filled(wide, kind=mask.type)
        closed = g.reshape(g.repeat(closed, wide, tokens, 1, 1), 1, wide, tokens)
        zeros = b.filled(selected, kind=mask.type)
        zeros = g.reshape(g.repeat(zeros, selected, tokens, 1, 1), 1, selected, tokens)
        score = g.get_rows(g.reshape(scores, 1, self.pools, tokens), top)
        live = g.repeat(g.like("CLAMP", g.like("SCALE", score)), pool, best, tokens, 1)
        tail = g.like("CLAMP", g.like("SCALE", g.cast(self.tail, F32)))
        live = g.concat(g.reshape(live, pool * best, tokens), tail, 0)
        dump = g.like("SCALE", Node("CUMSUM", F32, live.ne, [g.like("FILL", live)]))
        rows = g.like("SUB", g.cast(chosen, F32), dump)
        rows = g.cast(g.like("ADD", g.like("MUL", rows, live), dump), I32)
        opened = g.set_rows(closed, zeros, g.reshape(rows, selected, tokens, 1))
        row = opened.nb[2]
        shape = mask.ne
        opened = g.view(opened, shape, (row, row * shape[1], row * prod(shape[1:3])))
        return g.like("ADD", opened, mask)

    def head(self, x: Node) -> None:
        """The streams are mixed once more; there is no other norm."""
        x = self.mixed(x, "output_hc")
        x.is_output = True
        self.logits(x)
