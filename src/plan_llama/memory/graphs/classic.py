"""Graphs of older decoders: learned positions or attention biased by distance, parallel branches, norms with a mean.

Mirrors the files of src/models of llama.cpp b11434 that the classes name.
"""

from __future__ import annotations

from plan_llama.memory.ggml import F32, Node, tensor
from plan_llama.memory.graphs.decoder import Decoder


class LayerNorm(Decoder):
    """A plain decoder whose norms subtract the mean (LLM_NORM)."""

    norm_op = "NORM"


class Unrotated(Decoder):
    """No rotation: attention is biased by distance."""

    @property
    def unrotated(self) -> frozenset[int]:
        """All."""
        return frozenset(range(self.spec.layers))


class Refact(Unrotated):
    """Dense only (src/models/refact.cpp)."""

    def feed_forward(self, x: Node, il: int) -> Node:
        """build_ffn, which without matrices is its activation: experts that a file has are not used."""
        dense = self.b.has(f"blk.{il}.ffn_up.weight")
        return self.b.ffn(x, f"blk.{il}") if dense else self.g.like("UNARY", x)


class Baichuan(Decoder):
    """The 7B (32 layers) rotates, the 13B is biased by distance (src/models/baichuan.cpp)."""

    @property
    def unrotated(self) -> frozenset[int]:
        """None of LLM_TYPE_7B, all of others."""
        return frozenset(() if self.spec.layers == 32 else range(self.spec.layers))


class Biased(Unrotated):
    """Attention biased by distance, norms with a mean (src/models/jais.cpp)."""

    norm_op = "NORM"


class Bloom(Biased):
    """Token rows are normed on their way in (src/models/bloom.cpp)."""

    def inputs(self) -> Node:
        """The first layer's input."""
        return self.norm(super().inputs(), "token_embd_norm")


class Learned(Biased):
    """A table of positions is added to the token rows (src/models/gpt2.cpp, starcoder.cpp)."""

    def inputs(self) -> Node:
        """The first layer's input."""
        g = self.g
        x = super().inputs()
        table = self.b.maybe("position_embd.weight")
        return x if table is None else g.like("ADD", x, g.get_rows(table, self.positions))


class Mpt(Learned):
    """Queries and keys may be normed over all heads at once (src/models/mpt.cpp)."""

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """attn_q_norm and attn_k_norm, each with the weights of a whole row; a file may have the second alone."""
        if not self.b.has(f"blk.{il}.attn_q_norm.weight"):
            return q, k
        return self._norm_of_row(q, f"blk.{il}.attn_q_norm"), self._norm_of_row(k, f"blk.{il}.attn_k_norm")

    def _norm_of_row(self, x: Node, name: str) -> Node:
        flat = self.g.reshape(x, x.ne[0] * x.ne[1], x.ne[2])
        return self.g.reshape(self.norm(flat, name), *x.ne[:3])


class Plamo(Decoder):
    """Attention and feed-forward read the same norm and are added (src/models/plamo.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Both branches, then the residual."""
        g = self.g
        normed = self.norm(x, f"blk.{il}.attn_norm")
        attended = self.attention_of(normed, il)
        if last:
            attended, normed, x = (g.get_rows(node, self.out_ids) for node in (attended, normed, x))
        return g.like("ADD", self.both(attended, self.b.ffn(normed, f"blk.{il}")), x)

    def both(self, attended: Node, fed: Node) -> Node:
        """The sum of the two branches."""
        return self.g.like("ADD", fed, attended)


class Phi2(Plamo):
    """As PLaMo, with norms that subtract the mean and scaled queries (src/models/phi2.cpp)."""

    norm_op = "NORM"
    scaled_query = True

    def both(self, attended: Node, fed: Node) -> Node:
        """The sum of the two branches, the other way round."""
        return self.g.like("ADD", attended, fed)


class Bitnet(Decoder):
    """Norms before the last product of both branches; the head reads the token table where it lies
    (src/models/bitnet.cpp).
    """

    def attention_output(self, x: Node, il: int) -> Node:
        """A norm, then the output projection."""
        return self.b.mm(f"blk.{il}.attn_output", self.b.norm(x, f"blk.{il}.attn_sub_norm"))

    def feed_forward(self, x: Node, il: int) -> Node:
        """A norm before the way down."""
        b, prefix = self.b, f"blk.{il}"
        up = b.mm(f"{prefix}.ffn_up", x)
        hidden = self.g.glu(b.mm(f"{prefix}.ffn_gate", x), up)
        return b.mm(f"{prefix}.ffn_down", b.norm(hidden, f"{prefix}.ffn_sub_norm"))

    def head_matrix(self) -> Node:
        """The token table, on the host."""
        return self.b.w("token_embd.weight")


class Arctic(Decoder):
    """A dense branch over the attention's output beside experts over the layer's input (src/models/arctic.cpp)."""

    fixed_normalise = True

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Attention, the dense branch, then the experts."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.attention_of(b.norm(x, f"{prefix}.attn_norm"), il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        ffn_in = g.like("ADD", cur, x)
        dense = g.like("ADD", b.ffn(b.norm(ffn_in, f"{prefix}.ffn_norm"), prefix), ffn_in)
        return g.like("ADD", self.experts_of(b.norm(x, f"{prefix}.ffn_norm_exps"), il), dense)


class Chameleon(Decoder):
    """Heads normed with a mean, norms before or behind the branches, image tokens ruled out of the logits
    (src/models/chameleon.cpp).
    """

    first_image_token, last_image_token = 4, 8196

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """attn_q_norm and attn_k_norm."""
        return self.norm_of_head(q, f"blk.{il}.attn_q_norm"), self.norm_of_head(k, f"blk.{il}.attn_k_norm")

    def norm_of_head(self, x: Node, name: str) -> Node:
        """A norm that subtracts the mean."""
        return self.b.norm(x, name, op="NORM")

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """As a plain decoder, or with the norms behind the branches (swin_norm)."""
        if not self.spec.hparams.get("swin_norm"):
            return super().block(x, il, last=last)
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.attention_of(x, il)
        if last:
            cur, x = g.get_rows(cur, self.out_ids), g.get_rows(x, self.out_ids)
        cur = b.norm(cur, f"{prefix}.attn_norm")
        attended = g.like("ADD", cur, x)
        fed = b.norm(
            b.ffn(cur, prefix), f"{prefix}.ffn_norm"
        )  # of the branch, not of the sum: as the engine has it
        return g.like("ADD", fed, attended)

    def finished(self, logits: Node) -> Node:
        """A copy of the logits with the image tokens overwritten."""
        g = self.g
        ruled_out = g.like("CLAMP", tensor(F32, self.last_image_token - self.first_image_token))
        return g.like("SET", logits, ruled_out)


class Cogvlm(Decoder):
    """The text's weights of a model with separate ones for images; logits for every token
    (src/models/cogvlm.cpp).
    """

    all_rows = True

    def qkv(self, x: Node, il: int) -> tuple[Node, Node, Node]:
        """Three views of one plain product."""
        g, tokens, heads, size = self.g, self.batch.tokens, self.heads(il), self.head_v(il)
        qkv = g.mul_mat(self.b.w(f"blk.{il}.attn_qkv.weight"), x)
        strides = (qkv.type.nbytes(size), qkv.nb[1])
        q = g.view(qkv, (size, heads, tokens), strides)
        k, v = (g.view(qkv, (size, self.kv_heads(il), tokens), strides) for _ in range(2))
        return self.b.rope(q, self.positions), self.b.rope(k, self.positions), v  # without frequency factors

    @property
    def unrotated(self) -> frozenset[int]:
        """Already done."""
        return frozenset(range(self.spec.layers))


class Maincoder(Decoder):
    """Queries and keys are normed after the rotation (src/models/maincoder.cpp)."""

    rope_before_norms = True


class Talkie(Decoder):
    """Norms without weights; what came in is added behind every layer (src/models/talkie.cpp)."""

    rope_before_norms = True

    def inputs(self) -> Node:
        """Normed token rows, which every layer adds."""
        self.entered = self.norm(super().inputs(), "")
        return self.entered

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer, and its share of what came in."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        entered = self.entered
        cur = self.attention_of(self.norm(x, ""), il)
        if last:
            cur, x, entered = (g.get_rows(node, self.out_ids) for node in (cur, x, entered))
        ffn_in = g.like("ADD", cur, x)
        out = g.like("ADD", b.ffn(self.norm(ffn_in, ""), prefix), ffn_in)
        return g.like("ADD", out, g.like("MUL", entered, b.w(f"{prefix}.layer_output_scale.weight")))

    def finished(self, logits: Node) -> Node:
        """Scaled."""
        return self.g.like("SCALE", logits)


class Falcon(Phi2):
    """As Phi-2 without a scale; attention may have a norm of its own (src/models/falcon.cpp)."""

    scaled_query = False

    def attention_of(self, x: Node, il: int) -> Node:
        """Over the second norm of the layer's input, where there is one."""
        second = f"blk.{il}.attn_norm_2"
        if self.b.has(f"{second}.weight"):
            x = self.norm(self.entered, second)
        return super().attention_of(x, il)

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """Both branches, then the residual."""
        self.entered = x
        return super().block(x, il, last=last)

    def both(self, attended: Node, fed: Node) -> Node:
        """The sum of the two branches."""
        return self.g.like("ADD", fed, attended)


class GptNeox(LayerNorm):
    """The branches may be parallel, each with its norm (src/models/gptneox.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """One layer, as use_parallel_residual says."""
        if not self.spec.hparams.get("use_parallel_residual"):
            return super().block(x, il, last=last)
        g, prefix = self.g, f"blk.{il}"
        attended = self.attention_of(self.norm(x, f"{prefix}.attn_norm"), il)
        if last:
            attended, x = g.get_rows(attended, self.out_ids), g.get_rows(x, self.out_ids)
        fed = self.b.ffn(self.norm(x, f"{prefix}.ffn_norm"), prefix)
        return g.like("ADD", g.like("ADD", fed, x), attended)


class StableLm(LayerNorm):
    """Without a norm of its own the feed-forward reads attention's (src/models/stablelm.cpp)."""

    def norms_of_heads(self, q: Node, k: Node, il: int) -> tuple[Node, Node]:
        """attn_q_norm and attn_k_norm, which subtract the mean."""
        if not self.b.has(f"blk.{il}.attn_q_norm.weight"):
            return q, k
        return self.norm(q, f"blk.{il}.attn_q_norm"), self.norm(k, f"blk.{il}.attn_k_norm")

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """As a plain decoder, or with one norm for both branches."""
        g, prefix = self.g, f"blk.{il}"
        if self.b.has(f"{prefix}.ffn_norm.weight"):
            return super().block(x, il, last=last)
        normed = self.norm(x, f"{prefix}.attn_norm")
        attended = self.attention_of(normed, il)
        if last:
            attended, x, normed = (g.get_rows(node, self.out_ids) for node in (attended, x, normed))
        attended = g.like("ADD", attended, x)
        return g.like("ADD", self.b.ffn(normed, prefix), attended)


class OpenElm(Decoder):
    """One product for queries, keys and values; the residual comes first in its sum (src/models/openelm.cpp)."""

    def block(self, x: Node, il: int, *, last: bool) -> Node:
        """A plain layer with the sum the other way round."""
        b, g, prefix = self.b, self.g, f"blk.{il}"
        cur = self.attention_of(b.norm(x, f"{prefix}.attn_norm"), il)
        if last:
            x, cur = g.get_rows(x, self.out_ids), g.get_rows(cur, self.out_ids)
        ffn_in = g.like("ADD", x, cur)
        return g.like("ADD", b.ffn(b.norm(ffn_in, f"{prefix}.ffn_norm"), prefix), ffn_in)
