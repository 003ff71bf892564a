"""Headers of RWKV models, in the shapes that are published: test-llama-archs makes none of them.

The tensors are those that load_arch_tensors asks for (src/models/rwkv6.cpp, rwkv6qwen2.cpp, rwkv7.cpp, arwkv7.cpp,
b11434); matrices are q8_0, what llama-quantize leaves alone f32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plan_llama.models.ggml_types import by_name
from plan_llama.models.types import ModelSpec, Tensor

HEAD = 64
_PLAIN = ("lerp", "_first", "_w1", "_w2", "_a1", "_a2", "_v1", "_v2", "_g1", "_g2")
_Shapes = dict[str, tuple[int, ...]]


def _rwkv6(width: int, kv: int, *, mix: int, decay: int) -> _Shapes:
    shapes: _Shapes = {
        "time_mix_w1": (width, 5 * mix),
        "time_mix_w2": (mix, width, 5),
        "time_mix_lerp_x": (width, 1, 1),
        "time_mix_lerp_fused": (width, 1, 1, 5),
        "time_mix_decay": (width,),
        "time_mix_decay_w1": (width, decay),
        "time_mix_decay_w2": (decay, width),
        "time_mix_key": (width, kv),
        "time_mix_value": (width, kv),
    }
    return shapes | dict.fromkeys(("time_mix_receptance", "time_mix_gate", "time_mix_output"), (width, width))


def _rwkv7(width: int, low: Mapping[str, int]) -> _Shapes:
    shapes: _Shapes = {"time_mix_lerp_fused": (width, 1, 1, 6 if low.get("g") else 5)}
    for name, rank in low.items():
        shapes |= {f"time_mix_{name}1": (width, rank), f"time_mix_{name}2": (rank, width)}
    shapes |= dict.fromkeys(
        [f"time_mix_{name}" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")], (width,)
    )
    matrices = ("time_mix_key", "time_mix_value", "time_mix_receptance", "time_mix_output")
    return shapes | dict.fromkeys(matrices, (width, width))


def _channel_mix(width: int, ffn: int) -> _Shapes:
    return {
        "channel_mix_lerp_k": (width, 1, 1),
        "channel_mix_key": (width, ffn),
        "channel_mix_value": (ffn, width),
    }


def _ffn(width: int, ffn: int) -> _Shapes:
    return {
        "ffn_norm": (width,),
        "ffn_gate": (width, ffn),
        "ffn_up": (width, ffn),
        "ffn_down": (ffn, width),
    }


def _of_layer(shapes: _Shapes, il: int) -> _Shapes:
    """RWKV 7's first layer has no values to mix with; its tensors for that, unused, have another rank."""
    if il or "time_mix_v1" not in shapes:
        return shapes
    return shapes | {"time_mix_v1": shapes["time_mix_a1"], "time_mix_v2": shapes["time_mix_a2"]}


def _spec(
    name: str, architecture: str, sizes: tuple[int, int, int, int], layer: _Shapes, more: Mapping[str, Any]
) -> ModelSpec:
    layers, width, ffn, vocab = sizes
    converted = architecture in ("rwkv6qwen2", "arwkv7")
    f32, quantised = by_name("f32"), by_name("q8_0")
    tensors = [
        Tensor("token_embd.weight", quantised, (width, vocab)),
        Tensor("output_norm.weight", f32, (width,)),
        Tensor("output.weight", quantised, (width, vocab)),
    ]
    if not converted:
        names = ("token_embd_norm.weight", "token_embd_norm.bias", "output_norm.bias")
        tensors += [Tensor(norm, f32, (width,)) for norm in names]
    for il in range(layers):
        norms = ["attn_norm.weight"]
        if not converted:
            norms += ["attn_norm.bias", "attn_norm_2.weight", "attn_norm_2.bias"]
            norms += ["time_mix_ln.weight", "time_mix_ln.bias"]
        tensors += [Tensor(f"blk.{il}.{norm}", f32, (width,)) for norm in norms]
        for part, shape in _of_layer(layer, il).items():
            plain = len(shape) != 2 or any(word in part for word in _PLAIN)
            tensors.append(Tensor(f"blk.{il}.{part}.weight", f32 if plain else quantised, shape))
    keys = {
        "block_count": layers,
        "context_length": 1 << 20,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon" if converted else "attention.layer_norm_epsilon": 1e-5,
        "wkv.head_size": HEAD,
        "token_shift_count": 1 if converted else 2,
    }
    return ModelSpec(
        name=name,
        architecture=architecture,
        quant="Q8_0",
        tensors=tuple(tensors),
        hparams=keys | dict(more),
        vocab_size=vocab,
        file_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def headers() -> tuple[ModelSpec, ...]:
    """RWKV-6-World-1.6B, RWKV7-World-2.9B, QRWKV6-7B and ARWKV-7B; vocabularies are small, names made up."""
    six = _rwkv6(2048, 2048, mix=32, decay=64) | _channel_mix(2048, 7168)
    six |= {
        "time_mix_first": (HEAD, 32),
        "channel_mix_lerp_r": (2048, 1, 1),
        "channel_mix_receptance": (2048, 2048),
    }
    seven = _rwkv7(2560, {"w": 96, "a": 96, "v": 64, "g": 320}) | _channel_mix(2560, 10240)
    ranks = {"decay_lora_rank": 96, "iclr_lora_rank": 96, "value_residual_mix_lora_rank": 64}
    low_ranks = {f"attention.{key}": rank for key, rank in ranks.items()}
    converted = _rwkv7(3584, {"w": 96, "a": 96, "v": 64}) | _ffn(3584, 18944)
    extra = {"time_mix_extra_dim": 32, "time_decay_extra_dim": 64}
    qwen = _rwkv6(3584, 512, mix=64, decay=128) | _ffn(3584, 18944)
    qwen_extra = {"time_mix_extra_dim": 64, "time_decay_extra_dim": 128}
    return (
        _spec("rwkv-6-1.6b", "rwkv6", (24, 2048, 7168, 8192), six, {**extra, "rescale_every_n_layers": 6}),
        _spec(
            "rwkv-7-2.9b",
            "rwkv7",
            (32, 2560, 10240, 8192),
            seven,
            {**low_ranks, "attention.gate_lora_rank": 320},
        ),
        _spec(
            "qrwkv-6-7b",
            "rwkv6qwen2",
            (28, 3584, 18944, 8192),
            qwen,
            {**qwen_extra, "attention.head_count_kv": 8, "attention.head_count": 56},
        ),
        _spec("arwkv-7b", "arwkv7", (28, 3584, 18944, 8192), converted, low_ranks),
    )
