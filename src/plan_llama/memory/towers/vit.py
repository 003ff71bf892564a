"""What the graphs of vision towers have in common: patches, norms, attention, feed-forward and the transformer.

Mirrors clip_graph (tools/mtmd/clip.cpp) of llama.cpp b11434: build_inp, build_norm, build_ffn, build_attn, build_vit,
build_patch_merge_permute and resize_position_embeddings. Which tensors a file has decides the branches, as there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plan_llama.memory.ggml import F16, F32, I32, Graph, Node
from plan_llama.models.images import Image
from plan_llama.models.types import ModelSpec, Tensor, TensorType

AddPosition = Callable[[Node], Node]
GIVEN = 0  # the backend that a tower is loaded to: the GPU, or the CPU where it is not offloaded


@dataclass(frozen=True, slots=True)
class Shape:
    """The header's numbers that decide a tower's graph."""

    embd: int
    heads: int
    blocks: int
    patch: int
    merge: int

    @property
    def head(self) -> int:
        """Elements of an attention head."""
        return self.embd // self.heads


class Vit(ABC):
    """One tower's graph for `count` images of one size."""

    norm_op = "NORM"

    def __init__(
        self, spec: ModelSpec, tensors: Mapping[str, Tensor], shape: Shape, image: Image, *, flash_attn: bool
    ) -> None:
        self.g = Graph()
        self.spec = spec
        self.s = shape
        self.image = image
        self.flash_attn = flash_attn
        self.across = image.width // shape.patch
        self.down = image.height // shape.patch
        self.patches = self.across * self.down
        self._tensors = tensors
        self._weights: dict[str, Node] = {}

    @abstractmethod
    def build(self) -> None:
        """Adds the whole graph; each family has its own."""

    # -- weights and small parts ----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor."""
        return name in self._tensors

    def w(self, name: str) -> Node:
        """A weight by its name in the file. Raises KeyError where there is none."""
        if name not in self._weights:
            fact = self._tensors[name]
            full = (*fact.shape, *(1,) * (4 - len(fact.shape)))
            node = Node("NONE", fact.type, (full[0], full[1], full[2], full[3]), [])
            node.buffer, node.is_weight = GIVEN, True
            self._weights[name] = node
        return self._weights[name]

    def maybe(self, name: str) -> Node | None:
        """A weight, or None where the file has none of that name."""
        return self.w(name) if self.has(name) else None

    def mm(self, name: str, x: Node) -> Node:
        """build_mm, and the bias where there is one."""
        out = self.g.mul_mat(self.w(f"{name}.weight"), x)
        bias = self.maybe(f"{name}.bias")
        return out if bias is None else self.g.like("ADD", out, bias)

    def norm(self, x: Node, name: str | None, op: str | None = None) -> Node:
        """build_norm; without a name there is nothing to scale by."""
        x = self.g.like(op or self.norm_op, x)
        if name is None:
            return x
        for suffix, step in (("weight", "MUL"), ("bias", "ADD")):
            factor = self.maybe(f"{name}.{suffix}")
            if factor is not None:
                x = self.g.like(step, x, factor)
        return x

    def ffn(self, x: Node, up: str, gate: str | None, down: str) -> Node:
        """build_ffn."""
        wide = self.mm(up, x)
        if gate is not None and self.has(f"{gate}.weight"):
            hidden = self.g.glu(self.mm(gate, x), wide)
        else:
            hidden = self.g.like("UNARY", wide)
        return self.mm(down, hidden)

    # -- pixels ---------------------------------------------------------------------------------------------------

    def pixels(self) -> Node:
        """build_inp_raw."""
        return self.g.input(F32, self.image.width, self.image.height, 3, self.image.count)

    def im2col(self, kernel: tuple[int, int, int], x: Node, kind: TensorType, source: Node) -> Node:
        """ggml_im2col with a stride of the kernel's size and no padding."""
        across, down, channels = kernel
        ne = (across * down * channels, x.ne[0] // across, x.ne[1] // down, x.ne[3])
        return Node("IM2COL", kind, ne, [source, x])

    def conv(self, name: str, x: Node) -> Node:
        """ggml_conv_2d whose stride is its kernel: the columns, a product, and the channels in their place."""
        g, kernel = self.g, self.w(name)
        kind = F32 if kernel.type.name == "bf16" else F16
        columns = self.im2col((kernel.ne[0], kernel.ne[1], kernel.ne[2]), x, kind, kernel)
        rows = g.reshape(columns, columns.ne[0], columns.ne[1] * columns.ne[2] * columns.ne[3])
        flat = g.reshape(kernel, kernel.ne[0] * kernel.ne[1] * kernel.ne[2], kernel.ne[3])
        out = g.reshape(g.mul_mat(rows, flat), *columns.ne[1:], kernel.ne[3])
        out = g.permute(out, 0, 1, 3, 2)
        return g.cont(out)

    def patch_input(self, pixels: Node | None = None) -> Node:
        """build_inp: [embd, patches, images]."""
        g = self.g
        x = self.conv("v.patch_embd.weight", pixels or self.pixels())
        x = g.cont(g.transpose(g.reshape(x, self.patches, self.s.embd, self.image.count)))
        bias = self.maybe("v.patch_embd.bias")
        return x if bias is None else g.like("ADD", x, bias)

    def positions(self) -> Node:
        """resize_position_embeddings: the learned grid, scaled to the image's."""
        g, table = self.g, self.w("v.position_embd.weight")
        side = int(table.ne[1] ** 0.5)
        if self.down == side and self.across == side:
            return table
        x = g.permute(g.reshape(table, self.s.embd, side, side), 2, 0, 1, 3)
        x = Node("UPSCALE", x.type, (self.across, self.down, self.s.embd, 1), [x])
        return g.cont(g.permute(x, 1, 2, 0, 3), self.s.embd, self.across * self.down)

    def by_token(self, x: Node, merge: int = 2) -> Node:
        """Patches in the order of the tokens that 2 × 2 of them become (the spatial merge of Qwen, GLM and MiniMax)."""
        g, embd = self.g, self.s.embd
        x = g.cont(x, embd * merge, self.across // merge, self.down)
        x = g.reshape(x, embd * merge, self.across // merge, merge, self.down // merge)
        return g.cont(g.permute(x, 0, 2, 1, 3), embd, self.patches)

    # -- the transformer ------------------------------------------------------------------------------------------

    def vit(self, x: Node, learned: Node | None, add_position: AddPosition | None) -> Node:
        """build_vit: all blocks over the patches of all images."""
        g, s = self.g, self.s
        images, per_image = x.ne[2], x.ne[1]
        if learned is not None:
            x = g.like("ADD", x, learned)
        x = g.reshape(x, s.embd, per_image * images)
        if self.has("v.pre_ln.weight"):
            x = self.norm(x, "v.pre_ln")
        for il in range(s.blocks):
            x = self.block(x, f"v.blk.{il}", (per_image, images), add_position)
        if self.has("v.post_ln.weight"):
            x = self.norm(x, "v.post_ln")
        return g.reshape(x, s.embd, x.ne[1] // images, images)

    def block(self, x: Node, p: str, positions: tuple[int, int], add_position: AddPosition | None) -> Node:
        """One layer of build_vit."""
        g = self.g
        q, k, v = self.qkv(self.norm(x, f"{p}.ln1"), p, positions)
        if add_position is not None:
            q, k = add_position(q), add_position(k)
        cur = self.attention(q, self.key(k), self.value(v), f"{p}.attn_out")
        cur = self.post(self.scaled(cur, f"{p}.ls1"), f"{p}.attn_post_norm")
        x = g.like("ADD", cur, x)
        cur = self.ffn(self.norm(x, f"{p}.ln2"), f"{p}.ffn_up", f"{p}.ffn_gate", f"{p}.ffn_down")
        cur = self.scaled(self.post(cur, f"{p}.ffn_post_norm"), f"{p}.ls2")
        return self.scaled(g.like("ADD", x, cur), f"{p}.out_scale")

    def scaled(self, x: Node, name: str) -> Node:
        """A branch times its scale, where there is one."""
        factor = self.maybe(f"{name}.weight")
        return x if factor is None else self.g.like("MUL", x, factor)

    def post(self, x: Node, name: str) -> Node:
        """A norm behind a branch, where there is one."""
        return self.norm(x, name) if self.has(f"{name}.weight") else x

    def key(self, k: Node) -> Node:
        """What a family does to the keys behind their positions."""
        return k

    def value(self, v: Node) -> Node:
        """What a family does to the values."""
        return v

    def qkv(self, x: Node, p: str, positions: tuple[int, int]) -> tuple[Node, Node, Node]:
        """Queries, keys and values as [head, heads, positions, images]."""
        g, s, made = self.g, self.s, []
        if self.has(f"{p}.attn_qkv.weight"):
            both = self.mm(f"{p}.attn_qkv", x)
            strides = (both.type.nbytes(s.head), both.nb[1], both.nb[1] * positions[0])
            made = [g.view(both, (s.head, s.heads, *positions), strides) for _ in range(3)]
        else:
            flat = [self.mm(f"{p}.attn_{part}", x) for part in "qkv"]
            made = [g.reshape(part, s.head, s.heads, *positions) for part in flat]
        for i, part in enumerate("qk"):
            if self.has(f"{p}.attn_{part}_norm.weight"):
                made[i] = self.norm(made[i], f"{p}.attn_{part}_norm")
        return made[0], made[1], made[2]

    def attention(self, q: Node, k: Node, v: Node, out: str, mask: Node | None = None) -> Node:
        """build_attn."""
        g = self.g
        g.expand(q, k, v)
        q, k = g.permute(q, 0, 2, 1, 3), g.permute(k, 0, 2, 1, 3)
        if self.flash_attn:
            v = g.permute(v, 0, 2, 1, 3)
            k, v = g.cast(k, F16), g.cast(v, F16)
            mask = None if mask is None else g.cast(mask, F16)
            cur = g.flash_attn(q, k, v, mask, None)
            cur = g.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        else:
            v = g.cont(g.permute(v, 1, 2, 0, 3))
            scores = g.soft_max(g.mul_mat(k, q), mask)
            cur = g.permute(g.mul_mat(v, scores), 0, 2, 1, 3)
            cur = g.cont(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        return self.mm(out, cur)

    # -- positions that are rotated -------------------------------------------------------------------------------

    def grid_rope(self, count: int) -> AddPosition:
        """build_rope_2d: half of a head by the row, half by the column."""
        first, second = self.g.input(I32, count), self.g.input(I32, count)
        return lambda x: self.g.like("ROPE", self.g.like("ROPE", x, first), second)

    def sections_rope(self) -> AddPosition:
        """ggml_rope_multi with four numbers per patch."""
        positions = self.g.input(I32, 4 * self.patches)
        return lambda x: self.g.like("ROPE", x, positions)

    def merge_patches(self, x: Node) -> Node:
        """build_patch_merge_permute: the patches of one token side by side (pixel shuffle)."""
        g, factor = self.g, self.s.merge
        embd = x.ne[0]
        across, down = self.across, self.down
        x = g.reshape(x, embd, across, down)
        wide, high = -(-across // factor) * factor, -(-down // factor) * factor
        if (wide, high) != (across, down):
            x = Node("PAD", x.type, (embd, wide, high, 1), [x])
        x = g.permute(g.reshape(x, embd * factor, wide // factor, high), 0, 2, 1, 3)
        x = g.permute(g.cont(x, embd * factor * factor, high // factor, wide // factor), 0, 2, 1, 3)
        return g.cont(x, x.ne[0], x.ne[1] * x.ne[2])
