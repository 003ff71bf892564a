"""Tensors that the CUDA and HIP backends keep longer than the graph asks for, so that several operations run as one.

Follows ggml_backend_cuda_graph_optimize (ggml/src/ggml-cuda/ggml-cuda.cu of llama.cpp b11434): three patterns of a
mixture of experts are looked for in every part of the graph that a card runs, and what such a kernel reads stays
allocated until it has written. A card's compute buffer grows by that, on real CUDA devices only: a dry run without them
does not see it. GGML_CUDA_DISABLE_FUSION=1 switches it off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from plan_llama.memory.ggml import Node

Uses = Mapping[int, int]  # how often a node is a source, by its id

_MOST_SOURCES = 10  # GGML_MAX_SRC
_MOST_EXPERTS = 15  # MOE_WEIGHTED_REDUCTION_MAX_EXPERTS
_MOST_ROUTED, _OTHER_ROUTED = (
    512,
    (288, 576),
)  # ggml_cuda_should_use_topk_moe: experts that it has kernels for
_GATES = frozenset({"UNARY", "SOFT_MAX"})
_ROUTED = ["MUL_MAT_ID", "MUL_MAT_ID", "GLU"]
_STARTS = _GATES | {"MUL"}  # with which two of the patterns begin
_FIRST = _STARTS | {"MUL_MAT_ID"}  # and the third
_SIGMOID, _ROOT, _SOFTMAX = ("UNARY",), ("UNARY", "SQRT"), ("SOFT_MAX",)
_CHOICE = ("ARGSORT", "VIEW", "GET_ROWS")
_NORM = ("RESHAPE", "SUM_ROWS", "CLAMP", "DIV", "RESHAPE")


def uses(nodes: Sequence[Node]) -> Uses:
    """Counts the uses of every node of a graph (ggml_node_get_use_count)."""
    return Counter(map(id, chain.from_iterable([node.src for node in nodes if node.op != "HOLD"])))


def kept(nodes: Sequence[Node], counted: Uses) -> list[Node]:
    """The nodes that a card runs in a row, in the order that the backend gives them, each followed by one that holds
    what must not be given back before; the nodes themselves where nothing is to be held."""
    ordered = list(nodes)
    ops = [node.op for node in nodes]
    if _FIRST.isdisjoint(ops):
        return ordered
    holds: dict[int, list[Node]] = {}
    _shared_experts(ordered, ops, counted, holds)
    end = 0  # of what was found last
    for at, op in enumerate(ops):
        if at < end or op not in _STARTS:
            continue
        if op == "MUL":
            end = at + _weighted_sum(ordered, at, counted, holds)
        else:
            end = at + _routing(ordered, ops, at, counted, holds)
    if not holds:
        return ordered
    made = []
    for node in ordered:
        made.append(node)
        held = holds.get(id(node))
        if held is None:
            continue
        sources = list({id(source): source for source in held}.values())
        for first in range(0, len(sources), _MOST_SOURCES):
            some = sources[first : first + _MOST_SOURCES]
            hold = Node("NONE", some[0].type, some[0].ne, some, nb=some[0].nb, view_of=some[0])
            hold.backend, hold.mark = node.backend, node.mark
            made.append(hold)
    return made


def _fusible(nodes: Sequence[Node], outputs: Sequence[Node], counted: Uses) -> bool:
    """ggml_can_fuse_subgraph_ext: what is no output is used inside only, and is no view of something outside."""
    inside = {id(node) for node in nodes}
    named = {id(node) for node in outputs}
    within = uses(nodes)
    for node in nodes:
        if id(node) in named:
            continue
        if node.is_output or within.get(id(node), 0) != counted.get(id(node), 0):
            return False
        root = node.view_src
        if root is not None and id(root) not in inside and not root.is_weight:
            return False
    return True


def _shared_experts(nodes: list[Node], ops: list[str], counted: Uses, holds: dict[int, list[Node]]) -> None:
    """Gate and up of the routed and of the shared experts as one kernel: the shared ones move up to the routed ones."""
    routed = _next(ops, "MUL_MAT_ID", 0)
    while routed + 5 < len(ops):
        after = routed + 1
        if ops[routed : routed + 3] == _ROUTED:
            following = _next(ops, "MUL_MAT_ID", routed + 3)  # the next layer's
            while following + 1 < len(ops) and ops[following + 1] != "MUL_MAT_ID":
                following = _next(ops, "MUL_MAT_ID", following + 1)
            glu = _next(ops, "GLU", routed + 5)
            while glu < len(ops) and glu - 2 < following:
                shared = glu - 2
                six = [*nodes[routed : routed + 3], *nodes[shared : shared + 3]]
                if ops[shared] == "MUL_MAT" and _are_shared_experts(six, counted):
                    del nodes[shared : shared + 3], ops[shared : shared + 3]
                    nodes[routed + 3 : routed + 3] = six[3:]
                    ops[routed + 3 : routed + 3] = [node.op for node in six[3:]]
                    up = nodes[routed + 2].src[1]
                    holds.setdefault(id(nodes[routed + 5]), []).extend(up.src[1:3])
                    after = routed + 6
                    break
                glu = _next(ops, "GLU", glu + 1)
        routed = _next(ops, "MUL_MAT_ID", after)


def _next(ops: Sequence[str], op: str, start: int) -> int:
    """Where the operation comes next; the number of all where it does not."""
    try:
        return ops.index(op, start)
    except ValueError:
        return len(ops)


def _are_shared_experts(six: Sequence[Node], counted: Uses) -> bool:
    """ggml_cuda_match_shared_expert."""
    if [node.op for node in six] != [*_ROUTED, "MUL_MAT", "MUL_MAT", "GLU"]:
        return False
    routed, shared = six[2], six[5]
    for glu, products in ((routed, six[:2]), (shared, six[3:5])):
        if len(glu.src) != 2 or {id(node) for node in glu.src} != {id(node) for node in products}:
            return False
        gate, up = glu.src
        weights = gate.src[0], up.src[0]
        if weights[0].type != weights[1].type or weights[0].ne != weights[1].ne:
            return False
        if any(a is not b for a, b in zip(gate.src[1:], up.src[1:], strict=True)):
            return False
    weight, other = routed.src[1].src[0], shared.src[1].src[0]
    x, plain = routed.src[1].src[1], shared.src[1].src[1]
    return (
        _fusible(six, (routed, shared), counted)
        and weight.buffer is not None
        and weight.type.quantised
        and weight.type == other.type
        and weight.ne[:2] == other.ne[:2]
        and weight.op == other.op == shared.src[0].src[0].op == "NONE"
        and x.op == "RESHAPE"
        and x.src[0] is plain
        and (x.ne[1], x.ne[3]) == (1, 1)
        and (plain.ne[2], plain.ne[3]) == (1, 1)
        and plain.contiguous()
    )


def _weighted_sum(nodes: Sequence[Node], at: int, counted: Uses, holds: dict[int, list[Node]]) -> int:
    """The experts' results times their weights, and their sum (ggml_cuda_match_moe_weighted_reduction): how many nodes
    that takes, 0 where there is none."""
    first = nodes[at]
    if at + 1 == len(nodes) or nodes[at + 1].op not in ("MUL", "VIEW") or not first.contiguous():
        return 0
    products = [first]
    if nodes[at + 1].op == "MUL" and nodes[at + 1].contiguous():
        route, scale = _factors(nodes[at + 1]), _factors(first)
        if route is not None and scale is not None and route[0] is first:
            products.append(nodes[at + 1])
    factors = [_factors(product) for product in products]
    weighted = products[-1]
    used = weighted.ne[1]
    if factors[0] is None or not 2 <= used <= _MOST_EXPERTS:
        return 0
    count = 2 * used + len(products) - 1
    run = nodes[at : at + count]
    views: list[Node] = []
    total: Node | None = None
    sums = 0
    for node in run[len(products) :]:
        if node.op == "VIEW" and len(views) < used and node.src[0] is weighted:
            views.append(node)
            continue
        if node.op != "ADD" or sums + 1 >= len(views):
            return 0
        left = total or views[0]
        if node.src[0] is not left or node.src[1] is not views[sums + 1]:
            return 0
        total, sums = node, sums + 1
    if total is None or len(run) < count or len(views) != used or sums != used - 1:
        return 0
    if not _fusible(run, (total,), counted):
        return 0
    keep = holds.setdefault(id(total), [])
    for full, broadcast in filter(None, factors):
        keep += [broadcast] if full in products else [full, broadcast]
    return count


def _factors(product: Node) -> tuple[Node, Node] | None:
    """The factor of the product's shape, and the one that has a single element in its first dimension."""
    for full, broadcast in (product.src, product.src[::-1]):
        shaped = full.ne == product.ne and broadcast.ne == (1, *product.ne[1:])
        if shaped and full.contiguous() and broadcast.contiguous():
            return full, broadcast
    return None


def _routing(
    nodes: Sequence[Node], all_ops: Sequence[str], at: int, counted: Uses, holds: dict[int, list[Node]]
) -> int:
    """The choice of the experts and their weights as one kernel (ggml_cuda_topk_moe_fusion): how many nodes that takes,
    0 where there is none. What it computes and reads is held until the node behind it."""
    ops = all_ops[at : at + 14]
    start = next((gate for gate in (_ROOT, _SIGMOID, _SOFTMAX) if tuple(ops[: len(gate)]) == gate), ())
    probs = nodes[at + len(start) - 1]
    if len(probs.src) > 1 or not probs.contiguous():  # with a mask
        return 0
    length = len(start)
    for some in (("RESHAPE", "ADD", *_CHOICE), ("RESHAPE", *_CHOICE)):
        if tuple(ops[length : length + len(some)]) == some:
            length += len(some)
            break
    else:
        return 0
    rows, chosen = nodes[at + length - 1], nodes[at + length - 2]
    reshaped, order = nodes[at + len(start)], nodes[at + length - 3]
    ranked = nodes[at + length - 4] if length - len(start) == len(_CHOICE) + 2 else probs
    if reshaped.src[0] is not probs or order.src[0] is not ranked or chosen.src[0] is not order:
        return 0
    if ranked is not probs and ranked.src[0] is not probs:
        return 0
    if rows.src[0] is not reshaped or rows.src[1] is not chosen:
        return 0
    if tuple(ops[length : length + len(_NORM)]) == _NORM:
        norm = nodes[at + length : at + length + len(_NORM)]
        if norm[0].src[0] is rows and norm[3].src == [norm[0], norm[2]]:
            length += len(_NORM)
    if ops[length : length + 1] == ["SCALE"] and nodes[at + length].src[0] is nodes[at + length - 1]:
        length += 1
    experts = order.ne[0]
    if (experts & (experts - 1) or experts > _MOST_ROUTED) and experts not in _OTHER_ROUTED:
        return 0
    run = nodes[at : at + length]
    if at + length >= len(nodes) or not _fusible(run, (chosen, run[-1]), counted):
        return 0
    keep = holds.setdefault(id(nodes[at + length]), [])
    for node in run:
        keep += [node, *node.src]
    return length
