"""Which device holds each tensor, as llama.cpp places them.

Source: llama_model_base::load_tensors (src/llama-model.cpp), llama_model_loader::create_tensor
(src/llama-model-loader.cpp) and common/arg.cpp, b11434.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plan_llama.errors import UsageError
from plan_llama.memory.scheduler import CPU_KIND, BackendKind
from plan_llama.memory.table import INPUT_TENSORS, ModelTable
from plan_llama.memory.types import HOST, Settings

# made once per device that has a layer (TENSOR_DUPLICATED)
_PER_DEVICE_TENSORS = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")

# outside the blocks, and placed as the first one is (llm_tensor_info of src/llama-arch.cpp: LAYER_REPEATING)
_FIRST_LAYER_TENSORS = ("per_layer_model_proj.", "per_layer_proj_norm.", "token_embd_norm.", "hrm.z_l_init")

# Their loaders ask for the tied output before the token table, and so find none to share even on one device
# (src/models/gemma3n.cpp, gemma4.cpp).
_OUTPUT_FIRST = frozenset({"gemma3n", "gemma4"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a model's tensors and layers lie. Devices are GPU indices or HOST."""

    device_of: tuple[int | None, ...]  # by tensor of the spec; None = not loaded
    layer_device: tuple[int, ...]  # by block: where its cache and attention are
    output_device: int
    copies: tuple[tuple[int, int], ...]  # (tensor index, device) of tensors that exist a second time
    overridden: bool  # any tensor override switches pipeline parallelism off


def _f32(value: float) -> float:
    """Rounds to single precision: the engine computes its split points in float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def split_layers(
    blocks: int, gpu_layers: int, shares: Sequence[float], devices: Sequence[int]
) -> tuple[int, ...]:
    """The device of each block and, last, of the output layer. `shares` are -ts or the free bytes, by device."""
    total = blocks + 1
    start = max(total - gpu_layers, 0)
    active = min(gpu_layers, total) if devices else 0
    running = 0.0
    cumulative = []
    for share in shares:
        running = _f32(running + _f32(share))
        cumulative.append(running)
    if active and running <= 0:
        raise UsageError(
            "--tensor-split: the shares add up to nothing", hint="give each card a positive share"
        )
    points = [_f32(value / running) for value in cumulative] if running else []
    placed = []
    for block in range(total):
        if block < start or block - start >= active:
            placed.append(HOST)
            continue
        where = _f32(_f32(block - start) / active)
        index = next((i for i, point in enumerate(points) if where < point), len(points) - 1)
        placed.append(devices[index])
    return tuple(placed)


# What loaders take of the blocks for drafting though nobody drafts: tensors that they create without the flag that
# skips those blocks (src/models/*.cpp, b11434).
_LOADED_OF_DRAFTS = {
    "glm-dsa": re.compile(r"\.exp_probs_b\.bias$"),
    "deepseek32": re.compile(r"\.exp_probs_b\.bias$"),
    "step35": re.compile(
        r"\.(attn_[qk]_norm|attn_gate|ffn_gate|ffn_up|ffn_down|nextn\.shared_head_(head|norm))\.weight$"
    ),
}


def place(table: ModelTable, settings: Settings, free_bytes: Sequence[int]) -> Placement:
    """Places every tensor. `free_bytes` by GPU decides the split where no -ts is given, as in the engine."""
    devices: Sequence[int] = range(len(free_bytes))
    if settings.split_mode == "none" and free_bytes:
        devices = (settings.main_gpu,)
    given = settings.tensor_split
    shares = [given[i] if i < len(given) else 0.0 for i in devices] if any(given) else []
    if not any(shares):
        shares = [float(free_bytes[i]) for i in devices]
    *layers, output = split_layers(table.blocks, settings.gpu_layers, shares, devices)
    loaded = table.blocks if settings.draft_layers else table.layers
    always = _LOADED_OF_DRAFTS.get(table.spec.architecture)
    device_of: list[int | None] = []
    per_device: list[int] = []
    for index, (tensor, block) in enumerate(zip(table.spec.tensors, table.block_of, strict=True)):
        if block is not None:
            taken = block < loaded or (always is not None and always.search(tensor.name))
            device_of.append(layers[block] if taken else None)
        elif tensor.name.startswith(INPUT_TENSORS):
            device_of.append(HOST)
        elif tensor.name.startswith(_PER_DEVICE_TENSORS):
            per_device.append(index)
            device_of.append(layers[0])
        elif _goes_with_first_layer(tensor.name, table.spec.architecture):
            device_of.append(layers[0])
        else:
            device_of.append(output)
    tied = output
    embedding = table.by_name.get("token_embd.weight")
    for override in reversed(settings.overrides):  # the first match wins
        for index in table.matches(override.pattern):
            if device_of[index] is not None:
                device_of[index] = override.device
            if index == embedding:
                tied = override.device
    copies = [(i, device) for i in per_device for device in sorted(set(layers[:loaded]) - {device_of[i]})]
    apart = table.spec.architecture in _OUTPUT_FIRST
    if not table.has_output and embedding is not None and (apart or tied != device_of[embedding]):
        copies.append((embedding, tied))  # the output projection is a second copy of the token table
    return Placement(
        device_of=tuple(device_of),
        layer_device=tuple(layers),
        output_device=output,
        copies=tuple(copies),
        overridden=bool(settings.overrides),
    )


def _goes_with_first_layer(name: str, architecture: str) -> bool:
    """LFM2 calls the norm before its output `token_embd_norm`: that one lies with the output."""
    of_output = architecture in ("lfm2", "lfm2moe") and name.startswith("token_embd_norm.")
    return name.startswith(_FIRST_LAYER_TENSORS) and not of_output


def weight_bytes(table: ModelTable, placement: Placement, kinds: Mapping[int, BackendKind]) -> dict[int, int]:
    """Bytes of weights by device (HOST included)."""
    total = dict.fromkeys((*kinds, HOST), 0)
    stored = {device: table.stored_bytes(kinds.get(device, CPU_KIND)) for device in total}
    for index, device in enumerate(placement.device_of):
        if device is not None:
            total[device] += stored[device][index]
    for index, device in placement.copies:
        total[device] += stored[device][index]
    return total
