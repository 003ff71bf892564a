"""Small real models: the shapes of a family, seeded random weights, a tokenizer that works.

Nothing is downloaded. llama.cpp loads them, serves them and answers with nonsense; memory and speed are those
of any model of the shape. Needs the packages `gguf` and `numpy` of the `dev` extra.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

SEED = 20260115
NORMAL_TOKEN, UNKNOWN_TOKEN, CONTROL_TOKEN, BYTE_TOKEN = 1, 2, 3, 6
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
# Every projection is scaled alike; what counts is that no activation overflows or becomes 0.
WEIGHT_SCALE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The hyperparameters of a model to make. `quant` is the type of every matrix; norms are f32."""

    name: str
    architecture: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context_train: int
    quant: gguf.GGMLQuantizationType
    experts: int = 0
    experts_used: int = 0
    qk_norm: bool = False


# The proportions of TinyLlama-1.1B and of Qwen3-30B-A3B, scaled down to what two cores serve in a second.
DENSE = Shape(
    name="dense-llama",
    architecture="llama",
    layers=12,
    embedding=768,
    heads=12,
    kv_heads=4,
    head_dim=64,
    ffn=2048,
    vocab=32000,
    context_train=8192,
    quant=gguf.GGMLQuantizationType.Q8_0,
)
DENSE_Q4_0 = replace(DENSE, quant=gguf.GGMLQuantizationType.Q4_0)  # the type that CPU backends repack
MOE = Shape(
    name="moe-qwen3",
    architecture="qwen3moe",
    layers=4,
    embedding=1024,
    heads=16,
    kv_heads=4,
    head_dim=64,
    ffn=512,
    vocab=8192,
    context_train=8192,
    quant=gguf.GGMLQuantizationType.Q8_0,
    experts=16,
    experts_used=4,
    qk_norm=True,
)


def model_file(shape: Shape, cache: Path) -> Path:
    """The GGUF of a shape, made when `cache` does not hold it yet. Its name depends on this file's text."""
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache / f"{shape.name}-{shape.quant.name}-{made_by}.gguf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            _write(shape, scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    return target


def _write(shape: Shape, path: Path) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_hyperparameters(writer, shape)
    _add_tokenizer(writer, shape.vocab)
    _add_tensors(writer, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_hyperparameters(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(shape.name)
    writer.add_context_length(shape.context_train)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{shape.quant.name}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.ffn)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """A SentencePiece vocabulary with byte fallback: every text has tokens, and every token has a text."""
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN_TOKEN, CONTROL_TOKEN, CONTROL_TOKEN, *[BYTE_TOKEN] * 256]
    words = vocab - len(tokens)
    tokens += [f"▁w{index}" for index in range(words)]
    types += [NORMAL_TOKEN] * words
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(vocab)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")


def _add_tensors(writer: gguf.GGUFWriter, shape: Shape) -> None:
    random = np.random.default_rng(SEED)

    def matrix(name: str, *dims: int) -> None:
        """A weight in numpy's order of dimensions (rows first), quantised."""
        weights = random.standard_normal(dims, dtype=np.float32) * np.float32(WEIGHT_SCALE)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, shape.quant), raw_dtype=shape.quant)

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))

    matrix("token_embd", shape.vocab, shape.embedding)
    for layer in range(shape.layers):
        _add_layer(shape, f"blk.{layer}", writer, random, matrix, norm)
    norm("output_norm", shape.embedding)
    matrix("output", shape.vocab, shape.embedding)


def _add_layer(
    shape: Shape,
    block: str,
    writer: gguf.GGUFWriter,
    random: np.random.Generator,
    matrix: Callable[..., None],
    norm: Callable[[str, int], None],
) -> None:
    norm(f"{block}.attn_norm", shape.embedding)
    matrix(f"{block}.attn_q", shape.heads * shape.head_dim, shape.embedding)
    matrix(f"{block}.attn_k", shape.kv_heads * shape.head_dim, shape.embedding)
    matrix(f"{block}.attn_v", shape.kv_heads * shape.head_dim, shape.embedding)
    matrix(f"{block}.attn_output", shape.embedding, shape.heads * shape.head_dim)
    if shape.qk_norm:
        norm(f"{block}.attn_q_norm", shape.head_dim)
        norm(f"{block}.attn_k_norm", shape.head_dim)
    norm(f"{block}.ffn_norm", shape.embedding)
    if not shape.experts:
        matrix(f"{block}.ffn_gate", shape.ffn, shape.embedding)
        matrix(f"{block}.ffn_up", shape.ffn, shape.embedding)
        matrix(f"{block}.ffn_down", shape.embedding, shape.ffn)
        return
    # The router stays f32 in every published mix.
    router = random.standard_normal((shape.experts, shape.embedding), dtype=np.float32)
    writer.add_tensor(f"{block}.ffn_gate_inp.weight", router)
    matrix(f"{block}.ffn_gate_exps", shape.experts, shape.ffn, shape.embedding)
    matrix(f"{block}.ffn_up_exps", shape.experts, shape.ffn, shape.embedding)
    matrix(f"{block}.ffn_down_exps", shape.experts, shape.embedding, shape.ffn)
