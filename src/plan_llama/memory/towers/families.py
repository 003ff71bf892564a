"""The graph of each family of vision towers: what comes before and behind its transformer.

Mirrors the files of tools/mtmd/models/ of llama.cpp b11434 that are named with each class.
"""

from __future__ import annotations

from collections.abc import Mapping

from plan_llama.memory.ggml import F16, F32, I32, Node
from plan_llama.memory.towers.vit import AddPosition, Vit


class Gemma3(Vit):
    """SigLIP with an average over 4 × 4 patches (siglip.cpp)."""

    def build(self) -> None:
        g, embd, merge = self.g, self.s.embd, self.s.merge
        cur = self.vit(self.patch_input(), self.w("v.position_embd.weight"), None)
        cur = g.cont(g.transpose(cur), self.across, self.down, embd)
        cur = Node("POOL_2D", F32, (self.across // merge, self.down // merge, embd, 1), [cur])
        cur = g.cont(g.transpose(g.reshape(cur, cur.ne[0] * cur.ne[0], embd)))
        cur = g.like("MUL", g.like("RMS_NORM", cur), self.w("mm.soft_emb_norm.weight"))
        projection = g.cont(g.transpose(self.w("mm.input_projection.weight")))
        g.expand(g.mul_mat(projection, cur))


class _TwoFrames(Vit):
    """A pair of kernels, for two frames of a video; a still image goes through both (Qwen, GLM)."""

    def merged_input(self, merge: int = 2) -> Node:
        """build_inp_with_temporal_merge and the order of the tokens' patches."""
        pixels = self.pixels()
        both = [self.conv(name, pixels) for name in ("v.patch_embd.weight", "v.patch_embd.weight.1")]
        return self.by_token(self.g.permute(self.g.like("ADD", *both), 1, 2, 0, 3), merge)


class Qwen25Vl(_TwoFrames):
    """Attention within windows but in every n-th layer, behind a mask over all patches (qwen2vl.cpp)."""

    def build(self) -> None:
        g, s = self.g, self.s
        pattern = self.spec.int_param("vision.n_wa_pattern", 0)
        self.norm_op = "RMS_NORM" if self.spec.hparams.get("projector_type") != "qwen2vl_merger" else "NORM"
        cur = self.merged_input()
        rope = self.sections_rope()
        if self.has("v.pre_ln.weight"):
            cur = self.norm(cur, "v.pre_ln")
        mask: Node | None = None
        if pattern:
            order = g.input(I32, self.patches // 4)
            mask = g.input(F32, self.patches, self.patches)
            if self.flash_attn:
                mask = g.cast(mask, F16)
            cur = g.get_rows(g.reshape(cur, s.embd * 4, self.patches // 4), order)
            cur = g.reshape(cur, s.embd, self.patches)
        for il in range(s.blocks):
            everywhere = not pattern or (il + 1) % pattern == 0
            cur = self._block(cur, f"v.blk.{il}", rope, None if everywhere else mask)
        if self.has("v.post_ln.weight"):
            cur = self.norm(cur, "v.post_ln")
        cur = self.ffn(g.reshape(cur, s.embd * 4, self.patches // 4), "mm.0", None, "mm.2")
        if pattern:
            cur = g.get_rows(g.reshape(cur, cur.ne[0], self.patches // 4), g.input(I32, self.patches // 4))
        g.expand(cur)

    def _block(self, x: Node, p: str, rope: AddPosition, mask: Node | None) -> Node:
        g = self.g
        q, k, v = self.qkv(self.norm(x, f"{p}.ln1"), p, (self.patches, 1))
        x = g.like("ADD", self.attention(rope(q), rope(k), v, f"{p}.attn_out", mask), x)
        cur = self.ffn(self.norm(x, f"{p}.ln2"), f"{p}.ffn_up", f"{p}.ffn_gate", f"{p}.ffn_down")
        return g.like("ADD", x, cur)


class Qwen3Vl(_TwoFrames):
    """Learned positions, and results of some layers that the text model gets as well (qwen3vl.cpp)."""

    def build(self) -> None:
        g, s = self.g, self.s
        cur = g.like("ADD", self.merged_input(), self.w("v.patch_embd.bias"))
        cur = g.like("ADD", cur, self.by_token(self.positions()))
        rope = self.sections_rope()
        if self.has("v.pre_ln.weight"):
            cur = self.norm(cur, "v.pre_ln")
        merged = (s.embd * s.merge**2, self.patches // s.merge**2)
        deep: Node | None = None
        for il in range(s.blocks):
            cur = self.block(cur, f"v.blk.{il}", (self.patches, 1), rope)
            name = f"v.deepstack.{il}"
            if self.has(f"{name}.fc1.weight"):
                level = self.norm(g.reshape(cur, *merged), f"{name}.norm")
                level = self.ffn(level, f"{name}.fc1", None, f"{name}.fc2")
                deep = level if deep is None else g.concat(deep, level, 0)
        if self.has("v.post_ln.weight"):
            cur = self.norm(cur, "v.post_ln")
        cur = self.ffn(g.reshape(cur, s.embd * 4, self.patches // 4), "mm.0", None, "mm.2")
        g.expand(cur if deep is None else g.concat(cur, deep, 0))


class Glm4V(_TwoFrames):
    """Two frames as Qwen, learned positions, and a convolution that merges 2 × 2 patches (glm4v.cpp)."""

    norm_op = "RMS_NORM"

    def build(self) -> None:
        g, s, merge = self.g, self.s, self.s.merge
        rope = self.sections_rope()
        cur = g.like("ADD", self.merged_input(), self.w("v.patch_embd.bias"))
        if self.has("v.norm_embd.weight"):
            cur = self.norm(cur, "v.norm_embd")
        learned = self.by_token(self.positions()) if self.has("v.position_embd.weight") else None
        cur = self.vit(cur, learned, rope)
        tokens = self.patches // merge // merge
        cur = g.reshape(cur, s.embd, merge, merge, tokens)
        cur = self.conv("mm.patch_merger.weight", g.cont(g.permute(cur, 2, 0, 1, 3)))
        cur = g.like("ADD", g.reshape(cur, cur.ne[2], tokens), self.w("mm.patch_merger.bias"))
        cur = self.norm(self.mm("mm.model.fc", cur), "mm.post_norm", "NORM")
        g.expand(self.ffn(g.like("UNARY", cur), "mm.up", "mm.gate", "mm.down"))


class MiniMaxM3(_TwoFrames):
    """Two frames as Qwen, rotated positions by row and column, a second product that merges (minimax-m3.cpp)."""

    def build(self) -> None:
        g, merge = self.g, self.s.merge
        cur = self.merged_input(merge)
        cur = self.vit(cur, None, self.grid_rope(self.patches))
        cur = self.ffn(cur, "mm.1", None, "mm.2")
        cur = g.reshape(cur, cur.ne[0] * merge * merge, self.patches // (merge * merge))
        g.expand(self.ffn(cur, "mm.merger.fc1", None, "mm.merger.fc2"))


class KimiVl(Vit):
    """Learned and rotated positions, pixel shuffle (kimivl.cpp)."""

    def build(self) -> None:
        rope = self.grid_rope(self.patches)
        self.project(self.vit(self.patch_input(), self.positions(), rope))

    def project(self, cur: Node) -> None:
        """The patches of a token side by side, a norm over each, and two products."""
        g, factor = self.g, self.s.merge
        cur = self.merge_patches(cur)
        wide, tokens = cur.ne[0], cur.ne[1]
        cur = g.view(cur, (self.s.embd, tokens * factor * factor), (cur.type.nbytes(self.s.embd),))
        cur = self.norm(cur, "mm.input_norm", "NORM")
        cur = g.view(cur, (wide, tokens), (cur.type.nbytes(wide),))
        g.expand(self.ffn(cur, "mm.1", None, "mm.2"))


class KimiK25(KimiVl):
    """As Kimi-VL, with the learned positions in a grid that is added before (kimik25.cpp)."""

    def build(self) -> None:
        rope = self.grid_rope(self.patches)
        learned = self.grid_positions()
        cur = self.g.like("ADD", self.patch_input(), learned)
        self.project(self.vit(cur, None, rope))

    def grid_positions(self) -> Node:
        """resize_position_embeddings_3d."""
        g, table, embd = self.g, self.w("v.position_embd.weight"), self.s.embd
        if (table.ne[1], table.ne[2]) == (self.across, self.down):
            return g.cont(table, embd, self.patches)
        x = Node("UPSCALE", table.type, (self.down, self.across, embd, 1), [g.permute(table, 2, 1, 0, 3)])
        return g.cont(g.permute(x, 2, 1, 0, 3), embd, self.patches)


class InternVl(Vit):
    """Tiles of one size, several at a time, with a class token behind; pixel shuffle (internvl.cpp)."""

    def build(self) -> None:
        g, embd, factor, tiles = self.g, self.s.embd, self.s.merge, self.image.count
        self.norm_op = "RMS_NORM" if (embd, self.s.blocks) == (3200, 45) else "NORM"
        cur = self.patch_input()
        token = self.w("v.class_embd")
        cur = g.concat(cur, g.repeat(token, token.ne[0], 1, tiles, 1), 1)
        cur = self.vit(cur, self.w("v.position_embd.weight"), None)
        cur = g.cont(g.view(cur, (embd, self.patches, tiles), cur.nb[1:3]))
        cur = g.reshape(cur, embd * factor, self.down // factor, self.across, tiles)
        wide = embd * factor * factor
        cur = g.cont(g.permute(cur, 0, 2, 1, 3), wide, self.down // factor, self.across // factor, tiles)
        cur = g.permute(cur, 0, 2, 1, 3)
        cur = g.cont(cur, wide, cur.ne[1] * cur.ne[2], tiles)
        cur = self.norm(cur, "mm.model.mlp.0", "NORM")
        g.expand(self.ffn(cur, "mm.model.mlp.1", None, "mm.model.mlp.3"))


class Pixtral(Vit):
    """Rotated positions, patches merged by a product, a token behind each row (pixtral.cpp)."""

    norm_op = "RMS_NORM"

    def build(self) -> None:
        g, embd, merge = self.g, self.s.embd, self.s.merge
        rope = self.grid_rope(self.patches)
        cur = self.vit(self.patch_input(), None, rope)
        if self.has("mm.patch_merger.weight"):
            cur = g.like("MUL", g.like("RMS_NORM", cur), self.w("mm.input_norm.weight"))
            cur = g.cont(g.permute(g.reshape(cur, embd, self.across, self.down), 2, 0, 1, 3))
            kernel = g.view(cur, (merge, merge, cur.ne[2]), (0, 0))
            cur = self.im2col((merge, merge, cur.ne[2]), cur, F32, kernel)
            cur = self.mm("mm.patch_merger", g.reshape(cur, cur.ne[0], cur.ne[1] * cur.ne[2]))
        cur = self.ffn(cur, "mm.1", None, "mm.2")
        if self.has("v.token_embd.img_break"):
            across, down = self.across // merge, self.down // merge
            text = cur.ne[0]
            rows = g.reshape(cur, text, across, down)
            ends = g.like("SCALE", Node("NONE", rows.type, (text, 1, down, 1), []))
            ends = g.like("ADD", ends, self.w("v.token_embd.img_break"))
            rows = g.concat(rows, ends, 1)
            cur = g.view(rows, (text, across * down + down - 1), (rows.type.nbytes(text),))
        g.expand(cur)


class Llama4(Vit):
    """Tiles of one size with a class token, pixel shuffle (llama4.cpp)."""

    def build(self) -> None:
        g, embd, factor = self.g, self.s.embd, self.s.merge
        patch = self.s.patch
        rope = self.grid_rope(self.patches + 1)
        kernel = g.reshape(self.w("v.patch_embd.weight"), patch, patch, 3, embd)
        cur = self.im2col((patch, patch, 3), self.pixels(), F32, kernel)
        cur = g.reshape(self.mm("v.patch_embd", cur), embd, self.patches)
        cur = g.concat(cur, self.w("v.class_embd"), 1)
        cur = self.vit(cur, self.w("v.position_embd.weight"), rope)
        cur = g.view(cur, (embd, self.patches), (cur.type.nbytes(embd),))
        cur = g.reshape(cur, embd * factor, self.across // factor, self.down)
        shape = (embd * factor * factor, self.across // factor, self.down // factor)
        cur = g.cont(g.permute(cur, 0, 2, 1, 3), *shape)
        cur = g.cont(cur, shape[0], shape[1] * shape[2])
        for name in ("mm.model.mlp.1", "mm.model.mlp.2"):
            cur = g.like("UNARY", self.mm(name, cur))
        g.expand(self.mm("mm.model.fc", cur))


class Gemma4V(Vit):
    """Tables of positions by row and column, clamped products, an average over 3 × 3 patches (gemma4v.cpp)."""

    norm_op = "RMS_NORM"

    def build(self) -> None:
        g, embd, merge, images = self.g, self.s.embd, self.s.merge, self.image.count
        cur = self.patch_input(g.like("SCALE", self.pixels()))
        places = [g.input(I32, self.patches) for _ in range(2)]
        table = self.w("v.position_embd.weight")
        row = table.type.nbytes(embd)
        halves = [g.view(table, (embd, table.ne[1]), (row,)) for _ in range(2)]
        rows = [g.get_rows(half, place) for half, place in zip(halves, places, strict=True)]
        for part in rows:
            cur = g.like("ADD", cur, part)
        cur = self.vit(cur, None, lambda x: g.like("ROPE", g.like("ROPE", x, places[0]), places[1]))
        cur = g.cont(g.transpose(cur), self.across, self.down, embd, images)
        cur = Node("POOL_2D", F32, (self.across // merge, self.down // merge, embd, images), [cur])
        cur = g.cont(g.transpose(g.reshape(cur, cur.ne[0] * cur.ne[1], embd, images)))
        cur = g.like("SCALE", cur)
        if self.has("v.std_bias") and self.has("v.std_scale"):
            cur = g.like("MUL", g.like("SUB", cur, self.w("v.std_bias")), self.w("v.std_scale"))
        g.expand(self.mm("mm.input_projection", g.like("RMS_NORM", cur)))

    def value(self, v: Node) -> Node:
        return self.g.like("RMS_NORM", v)

    def mm(self, name: str, x: Node) -> Node:
        if not self.has(f"{name}.input_max"):
            return super().mm(name, x)
        return self.g.like("CLAMP", super().mm(name, self.g.like("CLAMP", x)))


FAMILIES: Mapping[str, type[Vit]] = {
    "gemma3": Gemma3,
    "gemma4v": Gemma4V,
    "glm4v": Glm4V,
    "internvl": InternVl,
    "kimik25": KimiK25,
    "kimivl": KimiVl,
    "llama4": Llama4,
    "minimax_m3": MiniMaxM3,
    "pixtral": Pixtral,
    "qwen2vl_merger": Qwen25Vl,
    "qwen2.5vl_merger": Qwen25Vl,
    "qwen3vl_merger": Qwen3Vl,
}
