"""llama.cpp's building blocks of a compute graph: inputs, norms, feed-forward and attention; experts.py has theirs.

Mirrors the `llm_graph_context::build_*` functions of src/llama-graph.cpp and the cache views of
src/llama-kv-cache.cpp, b11434. A block is described once; which tensors a layer has decides its branches, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plan_llama.memory.batch import Batch
from plan_llama.memory.ggml import F16, F32, I32, I64, Graph, Node, Shape, tensor
from plan_llama.memory.types import HOST
from plan_llama.models.types import ModelSpec, TensorType

# llm_arch_supports_mixed_batch, src/llama-arch.cpp: batches of tokens and embeddings together are not for these
_NO_MIXED_BATCH = frozenset({"cogvlm", "deepseek4", "granite-switch", "eagle3", "dflash", "gemma4-assistant"})

# whose scales beside the weights of a feed-forward are given to build_ffn (src/models/*.cpp)
_FFN_SCALES = frozenset(
    {
        *("bitnet", "clef", "cohere2", "cohere2moe", "deepseek32", "dots3note", "gemma4", "glm-dsa", "hy_v3"),
        *("llama", "mistral3", "nanbeige", "nemotron_h", "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe"),
        *("qwen3next", "qwen4exp"),
    }
)

# which of the two is long enough makes no difference to memory
_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class UndescribedGraph(Exception):  # noqa: N818 - not an error: the caller then takes an upper bound
    """The file lacks a tensor or a number that the graph of its architecture needs."""


def hadamard_size(head: int) -> int:
    """n_rot_k of llama_kv_cache: the largest power of two times 64 that divides the head size."""
    size = 64
    while head % (2 * size) == 0:
        size *= 2
    return size


class Builder:
    """Builds one model's graph. `device_of` and `layer_device` say where weights and caches lie (HOST = the CPU)."""

    def __init__(
        self,
        spec: ModelSpec,
        batch: Batch,
        device_of: Mapping[str, int],
        layer_device: Mapping[int, int],
        devices: int,
    ) -> None:
        self.g = Graph()
        self.spec = spec
        self.batch = batch
        self.cpu = devices
        self._device_of = device_of
        self._layer_device = layer_device
        self._tensors = {tensor.name: tensor for tensor in spec.tensors}
        self._weights: dict[str, Node] = {}
        self._caches: dict[str, Node] = {}
        self.output_device = HOST
        self.probing = (
            False  # the graph is only to show where it runs, its tokens are no micro-batch (probe.py)
        )
        # of gate and up, where it is of several ops. It is given the builder: one that holds on to it would keep all
        # nodes in memory.
        self.activation: Callable[[Builder, Node, Node], Node] | None = None
        # weights in formats of the CPU; `output.weight` also where it is tied
        self.fixed: frozenset[str] = frozenset()
        self.constants: list[Node] = []
        self.deepstack: tuple[Node, ...] = ()  # what the first layers add behind themselves (Qwen3-VL)

    def backend(self, device: int) -> int:
        """The scheduler's number of a device."""
        return self.cpu if device == HOST else device

    # -- weights and caches -------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor."""
        return name in self._tensors

    def w(self, name: str) -> Node:
        """A weight by its name in the file."""
        if name not in self._weights:
            if name not in self._tensors or name not in self._device_of:
                raise UndescribedGraph(name)
            fact = self._tensors[name]
            full = (*fact.shape, *(1,) * (4 - len(fact.shape)))
            node = Node("NONE", fact.type, (full[0], full[1], full[2], full[3]), [])
            node.buffer = self.backend(self._device_of[name])
            node.is_weight = True
            node.is_fixed = name in self.fixed
            self._weights[name] = node
        return self._weights[name]

    def output_weight(self, name: str) -> Node:
        """The head's matrix: where embeddings are tied, the copy of the token table on the output's device."""
        weight = self.w(name)
        fixed = "output.weight" in self.fixed and self.output_device == HOST
        if name != "token_embd.weight" or (weight.buffer == self.backend(self.output_device) and not fixed):
            return weight
        copy = Node("NONE", weight.type, weight.ne, [])
        copy.buffer = self.backend(self.output_device)
        copy.is_weight = True
        copy.is_fixed = fixed
        return copy

    def maybe(self, name: str) -> Node | None:
        """A weight, or None where the file has none of that name."""
        return self.w(name) if self.has(name) else None

    def rope_factors(self, layer: int) -> Node | None:
        """get_rope_factors: every device with layers has its own copy of these (TENSOR_DUPLICATED)."""
        for name in _ROPE_FACTORS:
            if self.has(name):
                device = self._layer_device[layer]
                key = f"{name}.{device}"
                if key not in self._weights:
                    node = self._weights[key] = Node("NONE", self.w(name).type, self.w(name).ne, [])
                    node.buffer, node.is_weight = self.backend(device), True
                return self._weights[key]
        return None

    def cache(
        self, name: str, kind: TensorType, row: int, cells: int, layer: int, *, streams: int = 0
    ) -> Node:
        """A layer's K, V or index cache: [row, cells, streams], where the layer runs."""
        return self._held(name, kind, (row, cells, streams or self.batch.streams, 1), layer)

    def state(self, name: str, elements: int, layer: int, kept: int = 1) -> Node:
        """What a recurrent layer keeps of every sequence: f32 [elements, sequences] (llama_memory_recurrent), and as
        often as it can be rolled back.
        """
        return self._held(name, F32, (elements, kept * self.batch.sequences, 1, 1), layer)

    def _held(self, name: str, kind: TensorType, ne: Shape, layer: int) -> Node:
        key = f"{name}.{layer}"
        if key not in self._caches:
            node = Node("NONE", kind, ne, [])
            node.buffer = self.backend(self._layer_device[layer]) if self.batch.kv_offload else self.cpu
            self._caches[key] = node
        return self._caches[key]

    # -- inputs ---------------------------------------------------------------------------------------------------

    def input_embedding(self) -> Node:
        """build_inp_embd: rows of the token table, embeddings given directly, or both: all three are reserved."""
        g, tokens = self.g, self.batch.tokens
        ids = g.input(I32, tokens)
        table = self.w("token_embd.weight")
        embd, levels = table.ne[0], self.spec.int_param("n_deepstack_layers", 0)
        rows = self._padded_rows(table, ids, levels)
        if "one-embedding" in self.batch.older:  # ik_llama.cpp: tokens or embeddings (llm_build_inp_embd)
            g.expand(rows)
            return rows
        given = g.input(F32, embd * (1 + levels), tokens)
        g.expand(rows, given)
        if self.spec.architecture not in _NO_MIXED_BATCH and "no-mixed-batch" not in self.batch.older:
            mixed_ids, slots = g.input(I32, tokens), g.input(I64, tokens)
            mixed = g.like("DUP", g.input(F32, embd * (1 + levels), tokens))
            g.expand(g.set_rows(mixed, self._padded_rows(table, mixed_ids, levels), slots))
        if not levels:
            return rows
        parts = [g.view(rows, (embd, tokens), (rows.nb[1],)) for _ in range(1 + levels)]
        self.deepstack = tuple(parts[1:])
        return parts[0]

    def _padded_rows(self, table: Node, ids: Node, levels: int) -> Node:
        """Rows of the token table; where images enter several layers, with room for what those layers add."""
        rows = self.g.get_rows(table, ids)
        wide = (table.ne[0] * (1 + levels), *rows.ne[1:])
        return Node("PAD", rows.type, (wide[0], wide[1], wide[2], wide[3]), [rows]) if levels else rows

    def mask(self, cells: int, kind: TensorType | None = None) -> Node:
        """build_attn_inp_kq_mask: [cells, tokens per stream, 1, streams]; f16 for flash attention.

        Older builds make it f32 and cast it (build_attn_inp_kv of src/llama-graph.cpp, b9093).
        """
        batch = self.batch
        if kind is None and batch.flash_attn and "mask-f32" in batch.older:
            return self.g.cast(self.mask(cells, F32), F16)
        kind = kind or (F16 if batch.flash_attn else F32)
        streams = 1 if batch.one_sequence else batch.streams
        return self.g.input(kind, cells, batch.tokens // streams, 1, streams)

    # -- norms and projections ------------------------------------------------------------------------------------

    def mm(self, name: str, x: Node, *, bias_first: bool = False, scaled: bool = True) -> Node:
        """build_lora_mm with the tensor's scale and bias, where there are any; a feed-forward adds the bias first."""
        out = self.g.mul_mat(self.w(f"{name}.weight"), x)
        extras = [(".scale", "MUL"), (".bias", "ADD")]
        for suffix, op in reversed(extras) if bias_first else extras:
            extra = self.maybe(name + suffix) if scaled or suffix != ".scale" else None
            if extra is not None:
                out = self.g.like(op, out, extra)
        return out

    def norm(self, x: Node, name: str, *, op: str = "RMS_NORM") -> Node:
        """build_norm."""
        weight, bias = self.maybe(f"{name}.weight"), self.maybe(f"{name}.bias")
        if op == "RMS_NORM" and weight is not None and "fused-ops" in self.batch.older:
            # ik_llama.cpp: one operation, which does not overwrite its source (ggml_op_can_inplace)
            x = self.g.like("FUSED_RMS_NORM", x, weight)
            return x if bias is None else self.g.like("ADD", x, bias)
        x = self.g.like(op, x)
        if weight is not None:
            x = self.g.like("MUL", x, weight)
        if bias is not None:
            x = self.g.like("ADD", x, bias)
        return x

    def capped(self, x: Node) -> Node:
        """Scores or logits capped by tanh; ik_llama.cpp's one operation for it does not overwrite its source."""
        for op in ("SOFTCAP",) if "fused-ops" in self.batch.older else ("SCALE", "UNARY", "SCALE"):
            x = self.g.like(op, x)
        return x

    def rope(self, x: Node, positions: Node, factors: Node | None = None) -> Node:
        """ggml_rope_ext."""
        return self.g.like("ROPE", x, positions, *([factors] if factors is not None else []))

    # -- feed-forward -----------------------------------------------------------------------------------------------

    def ffn(self, x: Node, prefix: str, suffix: str = "", *, clamped: bool = False) -> Node:
        """build_ffn: up, gate (parallel, where there is one), activation, down."""
        up = self._of_ffn(f"{prefix}.ffn_up{suffix}", x)
        if self.has(f"{prefix}.ffn_gate{suffix}.weight"):
            x = self.gate(self._of_ffn(f"{prefix}.ffn_gate{suffix}", x), up, clamped=clamped)
        elif up.ne[0] == 2 * self.w(f"{prefix}.ffn_down{suffix}.weight").ne[0]:
            x = self.g.glu(up)  # gate and up in one matrix (phi-3, glm-4)
        else:
            x = self.g.like("UNARY", up)
        return self._of_ffn(f"{prefix}.ffn_down{suffix}", x)

    def _of_ffn(self, name: str, x: Node) -> Node:
        return self.mm(name, x, bias_first=True, scaled=self.spec.architecture in _FFN_SCALES)

    def gate(self, gate: Node, up: Node, *, clamped: bool = False) -> Node:
        """The gated activation: one op, or one by one where both sides are clamped (swiglu_clamp_exp and _shexp)."""
        if self.activation is not None:
            return self.activation(self, gate, up)
        if not clamped:
            return self.g.glu(gate, up)
        up = self.g.like("CLAMP", up)
        return self.g.like("MUL", self.g.like("CLAMP", self.g.like("UNARY", gate)), up)

    # -- attention --------------------------------------------------------------------------------------------------

    def rotate(self, x: Node, rotation: Node) -> Node:
        """llama_mul_mat_hadamard: the rotation before a quantised cache."""
        g, n = self.g, rotation.ne[0]
        count = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3]
        flat = g.reshape(x, n, count // n) if x.contiguous() else g.cont(x, n, count // n)
        out = g.mul_mat(rotation, flat)
        return g.reshape(out, *x.ne)

    def store(self, cache: Node, values: Node, rows: Node) -> None:
        """cpy_k, and cpy_v under flash attention: whole rows into the cache."""
        g = self.g
        flat = g.view(values, (values.ne[0] * values.ne[1], values.ne[2]), (values.nb[2],))
        if cache.ne[2] > 1:
            cache = g.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
        g.expand(g.set_rows(cache, flat, rows))

    def store_transposed(self, cache: Node, values: Node, rows: Node) -> None:
        """cpy_v without flash attention: element by element, the cache being transposed."""
        g = self.g
        count = values.ne[0] * values.ne[1]
        if values.nb[2] == values.type.nbytes(count):
            flat = g.reshape(values, count, values.ne[2])
        else:
            flat = g.cont(values, count, values.ne[2])
        if count < cache.ne[0]:  # the cache has room for the widest layer's values
            flat = Node("PAD", flat.type, (cache.ne[0], *flat.ne[1:]), [flat])
        whole = g.reshape(cache, 1, cache.ne[0] * cache.ne[1] * cache.ne[2])
        g.expand(g.set_rows(whole, g.reshape(flat, 1, cache.ne[0] * values.ne[2]), rows))

    def read_k(self, cache: Node, head: int, heads: int, cells: int) -> Node:
        """get_k: [head, heads, cells, streams]."""
        kind = cache.type
        return self.g.view(
            cache,
            (head, heads, cells, cache.ne[2]),
            (kind.nbytes(head), kind.nbytes(cache.ne[0]), cache.nb[2]),
        )

    def read_v(self, cache: Node, head: int, heads: int, cells: int) -> Node:
        """get_v: as get_k, or transposed."""
        if not self.batch.v_transposed:
            return self.read_k(cache, head, heads, cells)
        kind = cache.type
        size = cache.ne[1]
        return self.g.view(
            cache,
            (cells, heads, head, cache.ne[2]),
            (kind.nbytes(size * head), kind.nbytes(size), kind.nbytes(size * cache.ne[0])),
        )

    def attention(
        self,
        q: Node,
        k: Node,
        v: Node,
        mask: Node,
        *,
        sinks: Node | None = None,
        v_mla: Node | None = None,
        soft_cap: bool = False,
        bias: Node | None = None,
    ) -> Node:
        """build_attn_mha. There is no flash attention with a bias of scores (T5)."""
        g = self.g
        transposed = v.nb[1] > v.nb[2]
        streams = k.ne[3]
        per_stream = q.ne[2] // streams
        q = g.view(q, (q.ne[0], q.ne[1], per_stream, streams), (q.nb[1], q.nb[2], q.nb[2] * per_stream))
        q, k, v = (g.permute(node, 0, 2, 1, 3) for node in (q, k, v))
        if self.batch.flash_attn and bias is None:
            if transposed:
                v = g.transpose(v)
            k, v = (g.cast(node, F16) if node.type == F32 else node for node in (k, v))
            out = g.flash_attn(q, k, v, mask, sinks)
            if v_mla is not None:
                out = g.mul_mat(v_mla, g.permute(out, 0, 2, 1, 3))
                out = g.cont(g.permute(out, 0, 2, 1, 3))
            out = g.reshape(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3])
        else:
            scores = g.mul_mat(k, q)
            scores.precise = True
            if soft_cap:
                scores = self.capped(scores)
            if bias is not None:
                scores = g.like("ADD", scores, bias)
            scores = g.soft_max(scores, mask, sinks)
            if not transposed:
                v = g.cont(g.transpose(v))
            out = g.mul_mat(v, scores)
            if v_mla is not None:
                out = g.mul_mat(v_mla, out)
            out = g.permute(out, 0, 2, 1, 3)
            out = g.cont(out, out.ne[0] * out.ne[1], out.ne[2] * out.ne[3])
        g.expand(out)
        return out

    def filled(self, *ne: int, kind: TensorType = F32) -> Node:
        """ggml_fill of a new tensor: a leaf that the allocator places before everything else."""
        node = self.g.like("FILL", tensor(kind, *ne))
        self.constants.append(node)
        return node

    def skip(self, count: int) -> None:
        """Stands for layers that are left out because they are like the one before: only its constants take memory of
        their own, as often as there are layers."""
        for constant in self.constants:
            a, b, c, d = constant.ne
            leaf = tensor(constant.type, a, b, c, d * count)
            leaf.visited = True
            hold = Node("HOLD", F32, (0, 0, 0, 0), [leaf])
            hold.twin = constant
            hold.mark = self.g.mark
            self.g.leafs.append(leaf)
            self.g.nodes.append(hold)
