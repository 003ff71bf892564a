"""DeepSeek-V4: hyper-connections, and attention over a window and over compressed cells.

Mirrors src/models/deepseek4.cpp, build_inp_dsv4 (src/llama-graph.cpp) and the reserved plan of
src/llama-kv-cache-dsv4.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from dataclasses import dataclass

from plan_llama.memory.batch import padded
from plan_llama.memory.blocks import Builder, hadamard_size
from plan_llama.memory.ggml import F16, F32, I32, I64, Node
from plan_llama.memory.graphs.drafting import own_or
from plan_llama.memory.graphs.streams import HyperConnected
from plan_llama.memory.recurrent import states_kept
from plan_llama.models.types import TensorType

_SPARSE, _HEAVY = 4, 128  # tokens per compressed cell (DSV4_CSA_RATIO, DSV4_HCA_RATIO)
_CELLS = 256  # caches are padded to this


@dataclass(frozen=True, slots=True)
class Compressor:
    """The inputs of one compressed cache (dsv4_build_comp_inputs)."""

    ratio: int
    cells: int
    rows: int  # of the state, over all sequences
    positions: Node
    persist_from: Node
    persist_to: Node
    restore: tuple[Node, Node] | None
    snapshot: tuple[Node, Node] | None
    read: Node
    write: Node
    write_positions: Node
    mask: Node
    rotation: Node | None


class DeepSeek4(HyperConnected):
    """Every layer keeps a window; most compress what lies behind it by 4 or by 128, and those that compress by 4 choose
    among the compressed cells with an indexer.
    """

    default_gating = 4

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.streams = self.spec.int_param("hyper_connection.count")
        self.sequences = self.batch.sequences
        self.kept = states_kept(self.spec, self.batch.drafts)
        self.head_size = self.spec.int_param("attention.key_length")
        self.index_size = self.spec.int_param("attention.indexer.key_length")

    def draft(self, il: int) -> bool:
        """graph_mtp: all streams of the state, beside the token's row; attention to a window of a plain cache."""
        b, g, batch, prefix, n = self.b, self.g, self.batch, f"blk.{il}.nextn", self.streams
        width, tokens = self.spec.int_param("embedding_length"), batch.tokens
        self.sequences = batch.streams  # the cache is no compressed one: slots may share it
        rows = g.get_rows(b.w(own_or(b, f"{prefix}.embed_tokens", "token_embd")), g.input(I32, tokens))
        state = g.reshape(g.input(F32, width * n, tokens), width, n, tokens)
        self._window_inputs()
        rows = g.reshape(b.norm(rows, f"{prefix}.enorm"), width, 1, tokens)
        both = g.concat(g.repeat(rows, width, n, tokens, 1), b.norm(state, f"{prefix}.hnorm"), 0)
        x = self.between(b.mm(f"{prefix}.eh_proj", both), f"blk.{il}", "attn", il)
        x = self.between(x, f"blk.{il}", "ffn", il)
        rows = g.get_rows(g.reshape(x, width * n, tokens), self.out_ids)
        rows.is_output = True
        x = self.narrowed_rows(rows, own_or(b, f"{prefix}.shared_head_norm", "output_norm"))
        logits = g.mul_mat(b.output_weight(own_or(b, f"{prefix}.shared_head_head", "output")), x)
        logits.is_output = True
        g.expand(logits)
        return True

    # -- inputs -------------------------------------------------------------------------------------------------

    def inputs(self) -> Node:
        """The token rows, once per hyper-connection."""
        g, batch = self.g, self.batch
        self.tokens = g.input(I32, batch.tokens)
        table = self.b.w("token_embd.weight")
        rows = g.get_rows(table, self.tokens)
        g.expand(rows, g.input(F32, table.ne[0], batch.tokens))
        self._window_inputs()
        mask_type, size = self.mask.type, self.rotation.ne[0] if self.rotation is not None else 0
        self.sparse = self._compressor(_SPARSE, mask_type, size)
        self.heavy = self._compressor(_HEAVY, mask_type, size)
        self.index = self._compressor(_SPARSE, F16, hadamard_size(self.index_size))
        g.expand(self.mask)
        x = g.reshape(rows, table.ne[0], 1, batch.tokens)
        return g.repeat(x, table.ne[0], self.streams, batch.tokens, 1)

    def _window_inputs(self) -> None:
        """Positions, wanted rows, and the inputs of the cache behind the window."""
        g, batch = self.g, self.batch
        self.positions = g.input(I32, batch.tokens)
        self.out_ids = g.input(I32, batch.outputs)
        self.rows_k = g.input(I64, batch.tokens)
        self.mask = self._mask(batch.window_cells, F16 if batch.flash_attn else F32)
        size = hadamard_size(self.head_size)
        quantised = batch.kv_type_k.quantised and self.head_size % 64 == 0
        self.rotation = g.input(F32, size, size) if quantised else None

    def _mask(self, cells: int, kind: TensorType) -> Node:
        return self.g.input(kind, cells, self.batch.tokens // self.sequences, 1, self.sequences)

    def _compressor(self, ratio: int, mask_type: TensorType, rotation: int) -> Compressor:
        """dsv4_build_reserve_comp_plan: the most blocks that a batch can complete."""
        g, tokens, drafts = self.g, self.batch.tokens, self.kept - 1
        blocks = tokens // ratio + self.sequences
        size = 2 * ratio if ratio == _SPARSE else ratio
        rows = size * self.sequences
        cells = padded(-(-self.batch.cells // ratio), _CELLS)
        persist = min(tokens, rows)
        pair = (g.input(I32, rows), g.input(I32, rows)) if drafts else None
        more = (g.input(I32, rows * drafts), g.input(I32, rows * drafts)) if drafts else None
        return Compressor(
            ratio=ratio,
            cells=cells,
            rows=rows,
            positions=g.input(I32, tokens),
            persist_from=g.input(I32, persist),
            persist_to=g.input(I32, persist),
            restore=pair,
            snapshot=more,
            read=g.input(I32, (2 if ratio == _SPARSE else 1) * ratio * blocks),
            write=g.input(I64, blocks),
            write_positions=g.input(I32, blocks),
            mask=self._mask(cells, mask_type),
            rotation=g.input(F32, rotation, rotation) if rotation else None,
        )

    # -- the block --------------------------------------------------------------------------------------------------

    def block(self, x: Node, il: int, *, last: bool) -> Node:  # noqa: ARG002 - rows are picked in the head
        """Attention and experts, each between narrowing and spreading."""
        return self.between(self.between(x, f"blk.{il}", "attn", il), f"blk.{il}", "ffn", il, expands=True)

    def between(self, x: Node, prefix: str, branch: str, il: int, *, expands: bool = False) -> Node:
        """A branch between narrowing and spreading; before experts the layers of the model expand what they have."""
        cur, post, comb = self.narrowed(x, f"{prefix}.hc_{branch}")
        if expands:
            self.g.expand(x, post, comb)
        cur = self.b.norm(cur, f"{prefix}.{branch}_norm")
        cur = self.attention_of(cur, il) if branch == "attn" else self.feed_forward(cur, il)
        return self.spread(cur, x, post, comb)

    def chosen_experts(self, il: int) -> Node | None:
        """The first layers choose experts by the token alone."""
        name = f"blk.{il}.ffn_gate_tid2eid.weight"
        return self.g.get_rows(self.b.w(name), self.tokens) if self.b.has(name) else None

    def attention_of(self, x: Node, il: int) -> Node:
        """Query and key, what the layer compresses, attention, and the way back in groups."""
        b, g, prefix, tokens = self.b, self.g, f"blk.{il}", self.batch.tokens
        heads, head = self.heads(il), self.head_size
        low = b.norm(b.mm(f"{prefix}.attn_q_a", x), f"{prefix}.attn_q_a_norm")
        q = g.like("RMS_NORM", g.reshape(b.mm(f"{prefix}.attn_q_b", low), head, heads, tokens))
        q = b.rope(q, self.positions)
        kv = b.norm(b.mm(f"{prefix}.attn_kv", x), f"{prefix}.attn_kv_a_norm")
        kv = b.rope(g.reshape(kv, head, 1, tokens), self.positions)
        if b.has(f"{prefix}.indexer.proj.weight"):
            self.compress(x, il, "attn", self.sparse, head)
            self.compress(x, il, "indexer", self.index, self.index_size)
            out = self.attend(q, kv, il, self.sparse, self.selected(low, x, il))
        elif b.has(f"{prefix}.attn_compressor_kv.weight"):
            self.compress(x, il, "attn", self.heavy, head)
            out = self.attend(q, kv, il, self.heavy, None)
        else:
            out = self.attend(q, kv, il, None, None)
        out = g.like("ROPE", g.reshape(out, head, heads, tokens), self.positions)
        groups = self.spec.int_param("attention.output_group_count")
        rank = self.spec.int_param("attention.output_lora_rank")
        out = g.permute(g.reshape(out, head * heads // groups, groups, tokens), 0, 2, 1, 3)
        weight = b.w(f"{prefix}.attn_output_a.weight")
        made = Node(
            "NONE", weight.type, (head * heads // groups, rank, groups, 1), []
        )  # TENSOR_ALLOW_RESHAPE
        made.buffer, made.is_weight = weight.buffer, True
        out = g.mul_mat(made, out)
        out = g.cont(g.permute(out, 0, 2, 1, 3), rank * groups, tokens)
        return b.mm(f"{prefix}.attn_output_b", out)

    # -- compression --------------------------------------------------------------------------------------------------

    def compress(self, x: Node, il: int, name: str, at: Compressor, head: int) -> None:
        """Cells that this batch completes are made and stored; the rest of its tokens stays in the state."""
        b, g, prefix = self.b, self.g, f"blk.{il}.{name}_compressor"
        values, scores = b.mm(f"{prefix}_kv", x), b.mm(f"{prefix}_gate", x)
        scores = g.like("ADD", scores, g.get_rows(b.w(f"{prefix}_ape.weight"), at.positions))
        overlaps = at.ratio == _SPARSE
        width = 2 * head if overlaps else head
        caches = [self._state(f"{name}.{half}", width, at, il) for half in ("kv", "score")]
        whole = [g.view(cache, (width, at.rows * self.kept), (cache.nb[1],)) for cache in caches]
        if at.restore is not None:
            taken, put = at.restore
            whole = [
                g.set_rows(cache, g.get_rows(state, taken), put)
                for cache, state in zip(caches, whole, strict=True)
            ]
        base = [g.view(state, (width, at.rows), (state.nb[1],)) for state in whole]
        source = [g.concat(state, new, 1) for state, new in zip(base, (values, scores), strict=True)]
        made = self._overlapping(source, at, head) if overlaps else self._blockwise(source, at, head)
        made = b.rope(b.norm(made, f"{prefix}_norm"), at.write_positions)
        if at.rotation is not None:
            made = b.rotate(made, at.rotation)
        b.store(self._compressed(name, at, head, il), made, at.write)
        if at.snapshot is not None:
            taken, put = at.snapshot
            everything = [g.concat(state, new, 1) for state, new in zip(whole, (values, scores), strict=True)]
            for cache, state in zip(caches, everything, strict=True):
                g.expand(g.set_rows(cache, g.get_rows(state, taken), put))
        persisted = [g.get_rows(new, at.persist_from) for new in (values, scores)]
        for cache, rows in zip(caches, persisted, strict=True):
            g.expand(g.set_rows(cache, rows, at.persist_to))

    def _state(self, name: str, width: int, at: Compressor, il: int) -> Node:
        return self.b.state(name, width, il, at.rows * self.kept // self.sequences)

    def _compressed(self, name: str, at: Compressor, head: int, il: int) -> Node:
        return self.b.cache(name, self.batch.kv_type_k, head, at.cells, il, streams=self.sequences)

    def _blockwise(self, source: list[Node], at: Compressor, head: int) -> Node:
        """build_hca_compressed_kv_from_state: a weighted mean over a block."""
        g, blocks = self.g, at.write_positions.ne[0]
        parts = [g.reshape(g.get_rows(state, at.read), head, at.ratio, blocks) for state in source]
        return self._mean(parts)

    def _overlapping(self, source: list[Node], at: Compressor, head: int) -> Node:
        """build_overlap_compressed_kv_from_state: over a block and the one before it."""
        g, blocks = self.g, at.write_positions.ne[0]
        count = at.ratio * blocks
        parts = []
        extended = []
        for state in source:
            row = g.like("SCALE", g.view(state, (state.ne[0],), ()))
            extended.append(g.concat(state, g.reshape(row, state.ne[0], 1), 1))
        for state in extended:
            rows = g.get_rows(state, at.read)
            halves = [
                g.reshape(g.cont(g.view(rows, (head, count), (rows.nb[1],))), head, at.ratio, blocks)
                for _ in range(2)
            ]
            parts.append(g.concat(halves[0], halves[1], 1))
        return self._mean(parts)

    def _mean(self, parts: list[Node]) -> Node:
        g = self.g
        values, scores = (g.cont(g.permute(part, 1, 0, 2, 3)) for part in parts)
        total = g.sum_rows(g.like("MUL", values, g.soft_max(scores)))
        return g.cont(g.permute(total, 1, 0, 2, 3))

    # -- attention ----------------------------------------------------------------------------------------------------

    def selected(self, low: Node, x: Node, il: int) -> Node:
        """build_lid_top_k: the compressed cells that the indexer chooses."""
        b, g, at, prefix, tokens = self.b, self.g, self.index, f"blk.{il}.indexer", self.batch.tokens
        heads, size = self.spec.int_param("attention.indexer.head_count"), self.index_size
        streams = self.sequences
        q = b.rope(g.reshape(b.mm(f"{prefix}.attn_q_b", low), size, heads, tokens), self.positions)
        assert at.rotation is not None, "the indexer's keys are always rotated"  # noqa: S101
        q = b.rotate(q, at.rotation)
        weights = g.like("SCALE", b.mm(f"{prefix}.proj", x))
        keys = b.read_k(self._compressed("indexer", at, size, il), size, 1, at.cells)
        keys = g.view(keys, keys.ne, keys.nb[1:])
        q = g.view(q, (size, heads, tokens // streams, streams), (q.nb[1], q.nb[2], q.nb[3] // streams))
        weights = g.view(
            weights,
            (heads, tokens // streams, 1, streams),
            (weights.nb[1], weights.nb[2] // streams, weights.nb[3] // streams),
        )
        scores = g.lightning_indexer(q, keys, weights, at.mask)
        wanted = self.spec.int_param("attention.indexer.top_k")
        return g.cont(g.top_k(scores, min(wanted, at.cells)))

    def attend(self, q: Node, kv: Node, il: int, at: Compressor | None, top: Node | None) -> Node:
        """Attention over the window and, behind it, the compressed cells."""
        b, g, head = self.b, self.g, self.head_size
        if self.rotation is not None:
            q, kv = b.rotate(q, self.rotation), b.rotate(kv, self.rotation)
        g.expand(q, kv)
        cells = self.batch.window_cells
        cache = b.cache("k", self.batch.kv_type_k, head, cells, il, streams=self.sequences)
        b.store(cache, kv, self.rows_k)
        k, mask = b.read_k(cache, head, 1, cells), self.mask
        if at is not None:
            more = b.read_k(self._compressed("attn", at, head, il), head, 1, at.cells)
            k = g.concat(k, g.view(more, more.ne, more.nb[1:]), 2)
            mask = g.concat(mask, at.mask if top is None else self._opened(at.mask, top), 0)
        out = b.attention(q, k, k, mask, sinks=b.w(f"blk.{il}.attn_sinks.weight"))
        return out if self.rotation is None else b.rotate(out, self.rotation)

    def _opened(self, mask: Node, top: Node) -> Node:
        """build_top_k_mask: everything but the chosen cells closed."""
        g = self.g
        closed = g.like("FILL", mask)
        closed = g.view(closed, (1, mask.ne[0], mask.ne[1], mask.ne[3]), mask.nb[:3])
        rows = g.view(
            top, (top.ne[0], top.ne[1], top.ne[3], 1), (top.nb[1], top.nb[2], top.ne[3] * top.nb[3])
        )
        zeros = self.b.filled(1, rows.ne[0], rows.ne[1], rows.ne[2], kind=mask.type)
        opened = g.set_rows(closed, zeros, rows)
        shape = (opened.ne[1], opened.ne[2], 1, opened.ne[3])
        opened = g.view(opened, shape, (opened.nb[2], opened.nb[3], opened.nb[3]))
        return g.like("ADD", opened, mask)

    # -- the head -----------------------------------------------------------------------------------------------------

    def head(self, x: Node) -> None:
        """The wanted rows of all streams, narrowed by weights of their own."""
        rows = self.g.get_rows(self.g.reshape(x, x.ne[0] * self.streams, x.ne[2]), self.out_ids)
        self.logits(self.narrowed_rows(rows, "output_norm.weight"))

    def narrowed_rows(self, rows: Node, norm: str) -> Node:
        """build_hc_head and the norm before the head."""
        b, g, n = self.b, self.g, self.streams
        width = rows.ne[0] // n
        x = g.reshape(rows, width, n, rows.ne[1])
        flat = g.like("RMS_NORM", g.reshape(x, width * n, rows.ne[1]))
        mixes = g.mul_mat(b.w("output_hc_fn.weight"), flat)
        mixes = g.like("MUL", mixes, b.w("output_hc_scale.weight"))
        mixes = g.like("SCALE", g.like("UNARY", g.like("ADD", mixes, b.w("output_hc_base.weight"))))
        total: Node | None = None
        for _ in range(n):
            part = g.view(x, (width, rows.ne[1]), (x.nb[2],))
            part = g.like("MUL", part, g.view(mixes, (1, rows.ne[1]), (mixes.nb[1],)))
            total = part if total is None else g.like("ADD", total, part)
        assert total is not None, "hyper_connection.count"  # noqa: S101 - as above
        x = b.norm(total, norm.removesuffix(".weight"))
        x.is_output = True
        return x
