"""ggml's tensors and graph construction, reduced to what decides memory: shapes, strides, sources and order.

Mirrors ggml/src/ggml.c of llama.cpp b11434: every function below makes the node that the function of the same name
there makes (op, shape, strides, view source, order of sources). No data, no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plan_llama.models.types import TensorType

F32 = TensorType(0, "f32", 1, 4)
F16 = TensorType(1, "f16", 1, 2)
I32 = TensorType(26, "i32", 1, 4)
I64 = TensorType(27, "i64", 1, 8)

# ggml_op_can_inplace in ggml-alloc.c: these may overwrite a source that nobody else reads.
INPLACE_OPS = frozenset(
    {
        *("FILL", "SCALE", "DIAG_MASK_INF", "ADD", "ADD_ID", "SUB", "MUL", "DIV", "SQR", "SQRT", "LOG"),
        *("UNARY", "ROPE", "RMS_NORM", "CLAMP", "SOFT_MAX"),
    }
)
# ggml_is_view_op in ggml-backend.cpp: no work, so the scheduler passes over them.
# HOLD is ours: it stands for the use of a constant in a layer that is left out (Builder.skip).
VIEW_OPS = frozenset(("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "HOLD"))

Shape = tuple[int, int, int, int]


def _strides(kind: TensorType, ne: Shape) -> Shape:
    row = kind.block_bytes * (ne[0] // kind.block_elements)
    return (kind.block_bytes, row, row * ne[1], row * ne[1] * ne[2])


class Node:
    """One tensor of a graph. What the scheduler and the allocator note of it is kept with it."""

    __slots__ = (
        "_made",
        "_nb",
        "allocated",
        "backend",
        "block",
        "buffer",
        "children",
        "cpu_only",
        "home",
        "is_fixed",
        "is_input",
        "is_output",
        "is_weight",
        "mark",
        "ne",
        "op",
        "precise",
        "size",
        "src",
        "twin",
        "type",
        "view_src",
        "views",
        "visited",
    )

    backend: int  # set by the scheduler
    block: int  # its number on the backend's tape; this and what follows is set where it is placed
    home: int
    size: int

    def __init__(
        self,
        op: str,
        kind: TensorType,
        ne: Shape,
        src: list[Node],
        *,
        nb: Shape | None = None,
        view_of: Node | None = None,
    ) -> None:
        self.op = op
        self.type = kind
        self.ne = ne
        self._nb = nb  # None: those of a freshly made tensor, which are seldom asked for
        self._made: Shape | None = None
        self.src = src
        # a view of a view is a view of the root (ggml_new_tensor_impl)
        self.view_src: Node | None = None if view_of is None else (view_of.view_src or view_of)
        self.is_input = False
        self.is_output = False
        self.is_weight = False
        self.mark = 0  # of the graph when the node was added to it
        self.precise = False  # ggml_prec_set_acc: computed in f32
        self.is_fixed = False  # a weight in a format of the CPU, which no other device can work with
        self.cpu_only = False  # an operation that the CUDA backend does not have
        self.twin: Node | None = None  # of a HOLD: the node whose backend it shares
        self.buffer: int | None = None  # backend whose memory already holds it (weights, caches)
        self.visited = False
        self.children = 0
        self.views = 0
        self.allocated = False

    @property
    def nb(self) -> Shape:
        """Strides in bytes."""
        if self._nb is not None:
            return self._nb
        if self._made is None:
            self._made = _strides(self.type, self.ne)
        return self._made

    @property
    def nbytes(self) -> int:
        """ggml_nbytes: the span of the strided data."""
        (a, b, c, d), kind = self.ne, self.type
        if self._nb is None:
            return kind.nbytes(a * b * c * d)
        (w, x, y, z) = self._nb
        if not (a and b and c and d):
            return 0
        first = kind.block_bytes + (a - 1) * w if kind.block_elements == 1 else a * w // kind.block_elements
        return first + (b - 1) * x + (c - 1) * y + (d - 1) * z

    @property
    def fresh(self) -> bool:
        """Whether it was made with strides of its own shape."""
        return self._nb is None

    def contiguous(self) -> bool:
        """Whether the strides are those of a freshly made tensor of this shape."""
        return self._nb is None or self._nb == _strides(self.type, self.ne)

    def laid_out_as(self, other: Node) -> bool:
        """ggml_are_same_layout."""
        if self.type is not other.type and self.type != other.type:
            return False
        if self.ne is not other.ne and self.ne != other.ne:
            return False
        return self._nb is other._nb or self.nb == other.nb


def tensor(kind: TensorType, *ne: int) -> Node:
    """ggml_new_tensor_*d."""
    full = (*ne, *(1,) * (4 - len(ne)))
    return Node("NONE", kind, (full[0], full[1], full[2], full[3]), [])


class Graph:
    """A graph under construction: leafs and nodes in the order of ggml_build_forward_expand."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.leafs: list[Node] = []
        self.mark = 0  # counts the parts that repeat each other, as they are built

    def expand(self, *roots: Node) -> None:
        """Adds a tensor and all it needs: depth first, sources from left to right (ggml_visit_parents_graph)."""
        nodes, leafs, mark = self.nodes, self.leafs, self.mark
        for root in roots:
            if root.visited:
                continue
            root.visited = True
            stack: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.src))]
            while stack:
                node, sources = stack[-1]
                for source in sources:
                    if source.visited:
                        continue
                    source.visited = True
                    if source.src:
                        stack.append((source, iter(source.src)))
                        break
                    source.mark = mark
                    (leafs if source.op == "NONE" else nodes).append(source)
                else:
                    stack.pop()
                    node.mark = mark
                    (leafs if node.op == "NONE" else nodes).append(node)

    # -- inputs ------------------------------------------------------------------------------------------------

    def input(self, kind: TensorType, *ne: int) -> Node:
        """A tensor that the engine fills before each batch (ggml_set_input)."""
        node = tensor(kind, *ne)
        node.is_input = True
        return node

    # -- views: no memory of their own ---------------------------------------------------------------------------

    def reshape(self, a: Node, *ne: int) -> Node:
        """ggml_reshape_*d: same data, new shape."""
        full = (*ne, *(1,) * (4 - len(ne)))
        return Node("RESHAPE", a.type, (full[0], full[1], full[2], full[3]), [a], view_of=a)

    def view(self, a: Node, ne: Sequence[int], nb: Sequence[int]) -> Node:
        """ggml_view_*d: `ne` dimensions, `nb` the strides in bytes of dimensions 1 and up."""
        dims = len(ne)
        shape = (*ne, *(1,) * (4 - dims))
        strides = [a.type.block_bytes, *nb]
        for i in range(len(strides), 4):
            strides.append(strides[i - 1] * shape[i - 1])
        return Node(
            "VIEW",
            a.type,
            (shape[0], shape[1], shape[2], shape[3]),
            [a],
            nb=(strides[0], strides[1], strides[2], strides[3]),
            view_of=a,
        )

    def permute(self, a: Node, *axes: int) -> Node:
        """ggml_permute: axes[i] is where dimension i goes."""
        ne = [0, 0, 0, 0]
        nb = [0, 0, 0, 0]
        for i, axis in enumerate(axes):
            ne[axis] = a.ne[i]
            nb[axis] = a.nb[i]
        return Node(
            "PERMUTE",
            a.type,
            (ne[0], ne[1], ne[2], ne[3]),
            [a],
            nb=(nb[0], nb[1], nb[2], nb[3]),
            view_of=a,
        )

    def transpose(self, a: Node) -> Node:
        """ggml_transpose."""
        ne, nb = a.ne, a.nb
        return Node(
            "TRANSPOSE",
            a.type,
            (ne[1], ne[0], ne[2], ne[3]),
            [a],
            nb=(nb[1], nb[0], nb[2], nb[3]),
            view_of=a,
        )

    # -- operations ------------------------------------------------------------------------------------------------

    def like(self, op: str, a: Node, *others: Node) -> Node:
        """An op whose result has the type and shape of its first source (ggml_dup_tensor: contiguous)."""
        return Node(op, a.type, a.ne, [a, *others])

    def mul_mat(self, a: Node, b: Node) -> Node:
        """ggml_mul_mat: [a.ne1, b.ne1, b.ne2, b.ne3] in f32."""
        return Node("MUL_MAT", F32, (a.ne[1], b.ne[1], b.ne[2], b.ne[3]), [a, b])

    def mul_mat_id(self, experts: Node, b: Node, ids: Node) -> Node:
        """ggml_mul_mat_id: [experts.ne1, ids.ne0, b.ne2, 1] in f32."""
        return Node("MUL_MAT_ID", F32, (experts.ne[1], ids.ne[0], b.ne[2], 1), [experts, b, ids])

    def get_rows(self, a: Node, rows: Node) -> Node:
        """ggml_get_rows: f32 rows (i32 stays i32)."""
        kind = I32 if a.type == I32 else F32
        return Node("GET_ROWS", kind, (a.ne[0], rows.ne[0], rows.ne[1], rows.ne[2]), [a, rows])

    def set_rows(self, a: Node, values: Node, rows: Node) -> Node:
        """ggml_set_rows: a view of `a` that is written."""
        return Node("SET_ROWS", a.type, a.ne, [values, rows, a], nb=a.nb, view_of=a)

    def cont(self, a: Node, *ne: int) -> Node:
        """ggml_cont / ggml_cont_*d: a contiguous copy, maybe reshaped."""
        if not ne:
            return Node("CONT", a.type, a.ne, [a])
        full = (*ne, *(1,) * (4 - len(ne)))
        return Node("CONT", a.type, (full[0], full[1], full[2], full[3]), [a])

    def cast(self, a: Node, kind: TensorType) -> Node:
        """ggml_cast."""
        return Node("CPY", kind, a.ne, [a])

    def cpy(self, a: Node, b: Node) -> Node:
        """ggml_cpy: a view of `b` that is written."""
        return Node("CPY", b.type, b.ne, [a, b], nb=b.nb, view_of=b)

    def in_place(self, op: str, a: Node, *others: Node) -> Node:
        """ggml_scale_inplace, ggml_set_inplace and their kin: a view of `a` that is written."""
        return Node(op, a.type, a.ne, [a, *others], nb=a.nb, view_of=a)

    def glu(self, gate: Node, up: Node | None = None) -> Node:
        """ggml_swiglu and its kin: with `up` of the gate's shape, without it half the row."""
        if up is not None:
            return Node("GLU", gate.type, gate.ne, [gate, up])
        ne = gate.ne
        return Node("GLU", gate.type, (ne[0] // 2, ne[1], ne[2], ne[3]), [gate])

    def concat(self, a: Node, b: Node, dim: int) -> Node:
        """ggml_concat."""
        ne = list(a.ne)
        ne[dim] += b.ne[dim]
        return Node("CONCAT", a.type, (ne[0], ne[1], ne[2], ne[3]), [a, b])

    def sum_rows(self, a: Node) -> Node:
        """ggml_sum_rows."""
        return Node("SUM_ROWS", a.type, (1, a.ne[1], a.ne[2], a.ne[3]), [a])

    def argsort_top_k(self, a: Node, k: int) -> Node:
        """ggml_argsort_top_k: a whole argsort, and a view of its first k."""
        order = Node("ARGSORT", I32, a.ne, [a])
        return self.view(order, (k, a.ne[1], a.ne[2], a.ne[3]), order.nb[1:])

    def top_k(self, a: Node, k: int) -> Node:
        """ggml_top_k: k indices a row."""
        return Node("TOP_K", I32, (k, a.ne[1], a.ne[2], a.ne[3]), [a])

    def repeat(self, a: Node, *ne: int) -> Node:
        """ggml_repeat_4d."""
        return Node("REPEAT", a.type, (ne[0], ne[1], ne[2], ne[3]), [a])

    def flash_attn(self, q: Node, k: Node, v: Node, mask: Node | None, sinks: Node | None) -> Node:
        """ggml_flash_attn_ext: [v.ne0, q.ne2, q.ne1, q.ne3] in f32."""
        sources = [q, k, v, *(n for n in (mask, sinks) if n is not None)]
        return Node("FLASH_ATTN_EXT", F32, (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), sources)

    def soft_max(self, a: Node, mask: Node | None = None, sinks: Node | None = None) -> Node:
        """ggml_soft_max_ext."""
        return Node("SOFT_MAX", a.type, a.ne, [a, *(n for n in (mask, sinks) if n is not None)])

    def ssm_conv(self, x: Node, kernel: Node) -> Node:
        """ggml_ssm_conv: f32 [channels, tokens, sequences]."""
        return Node("SSM_CONV", F32, (kernel.ne[1], x.ne[0] - kernel.ne[0] + 1, x.ne[2], 1), [x, kernel])

    def ssm_scan(self, states: Node, x: Node, *sources: Node) -> Node:
        """ggml_ssm_scan: f32, the outputs and, behind them, a state per index (the last source)."""
        size, ids = states.ne[0] * states.ne[1] * states.ne[2], sources[-1].ne[0]
        count = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3]
        return Node("SSM_SCAN", F32, (count + size * ids, 1, 1, 1), [states, x, *sources])

    def gated_delta_net(
        self, q: Node, k: Node, v: Node, gate: Node, beta: Node, state: Node, kept: int = 1
    ) -> Node:
        """ggml_gated_delta_net: the outputs of all tokens and, behind them, the last `kept` states."""
        size, heads, tokens, sequences = v.ne
        ne = (size * heads, (tokens + kept * size) * sequences, 1, 1)
        return Node("GATED_DELTA_NET", F32, ne, [q, k, v, gate, beta, state])

    def lightning_indexer(self, q: Node, k: Node, weights: Node, mask: Node) -> Node:
        """ggml_lightning_indexer: f32 scores [cells, tokens, 1, streams]."""
        return Node("LIGHTNING_INDEXER", F32, (k.ne[2], q.ne[2], 1, q.ne[3]), [q, k, weights, mask])
