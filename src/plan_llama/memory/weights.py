"""Which device holds each tensor, as llama.cpp places them.

Source: llama_model_base::load_tensors (src/llama-model.cpp), llama_model_loader::create_tensor
(src/llama-model-loader.cpp) and common/arg.cpp, b11434.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from plan_llama.errors import UsageError
from plan_llama.memory.scheduler import CPU_KIND, BackendKind, padded_bytes
from plan_llama.memory.types import HOST, Override, Settings
from plan_llama.models.spec import block_of
from plan_llama.models.types import ModelSpec, Tensor

# llm_tensor_info of src/llama-arch.cpp: looked up by row, so always on the host
_INPUT_TENSORS = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
# made once per device that has a layer (TENSOR_DUPLICATED)
_PER_DEVICE_TENSORS = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")

EXPERTS_PATTERN = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # LLM_FFN_EXPS_REGEX, common/common.h
DENSE_FFN_PATTERN = r"\.ffn_(up|down|gate)\."  # LLM_FFN_DENSE_REGEX


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
        raise UsageError("--tensor-split: the shares add up to nothing", hint="give each card a positive share")
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


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"-ot: {pattern!r} is not a regular expression ({error})") from error


def override_for(name: str, overrides: Sequence[Override]) -> int | None:
    """The device that the first matching -ot pattern names, if any."""
    for override in overrides:
        if _compiled(override.pattern).search(name):
            return override.device
    return None


def place(spec: ModelSpec, settings: Settings, free_bytes: Sequence[int]) -> Placement:
    """Places every tensor. `free_bytes` by GPU decides the split where no -ts is given, as in the engine."""
    count = len(free_bytes)
    blocks = spec.int_param("block_count")
    devices: Sequence[int] = range(count)
    if settings.split_mode == "none" and count:
        devices = (settings.main_gpu,)
    given = settings.tensor_split
    shares = [given[i] if i < len(given) else 0.0 for i in devices] if any(given) else []
    if not any(shares):
        shares = [float(free_bytes[i]) for i in devices]
    *layers, output = split_layers(blocks, settings.gpu_layers, shares, devices)
    loaded_blocks = blocks if settings.draft_layers else spec.layers
    has_output = any(t.name == "output.weight" for t in spec.tensors)
    device_of: list[int | None] = []
    copies: list[tuple[int, int]] = []
    for index, tensor in enumerate(spec.tensors):
        home = _home(tensor, layers, output, loaded_blocks)
        if home is None:
            device_of.append(None)
            continue
        if tensor.name == "token_embd.weight" and not has_output:
            tied = override_for(tensor.name, settings.overrides)
            tied = output if tied is None else tied
            if tied != HOST:
                copies.append((index, tied))  # the output projection is a second copy
        elif tensor.name.startswith(_PER_DEVICE_TENSORS):
            copies.extend((index, device) for device in sorted(set(layers[:loaded_blocks]) - {home}))
        moved = override_for(tensor.name, settings.overrides)
        device_of.append(home if moved is None else moved)
    return Placement(
        device_of=tuple(device_of),
        layer_device=tuple(layers),
        output_device=output,
        copies=tuple(copies),
        overridden=bool(settings.overrides),
    )


def _home(tensor: Tensor, layers: Sequence[int], output: int, loaded_blocks: int) -> int | None:
    block = block_of(tensor)
    if block is not None:
        return layers[block] if block < loaded_blocks else None
    if tensor.name.startswith(_INPUT_TENSORS):
        return HOST
    if tensor.name.startswith(_PER_DEVICE_TENSORS):
        return layers[0]
    return output


def weight_bytes(
    spec: ModelSpec, placement: Placement, kinds: Mapping[int, BackendKind]
) -> dict[int, int]:
    """Bytes of weights by device (HOST included)."""
    total = dict.fromkeys((*kinds, HOST), 0)
    for tensor, device in zip(spec.tensors, placement.device_of, strict=True):
        if device is not None:
            total[device] += _stored(tensor, kinds.get(device, CPU_KIND))
    for index, device in placement.copies:
        total[device] += _stored(spec.tensors[index], kinds.get(device, CPU_KIND))
    return total


def _stored(tensor: Tensor, kind: BackendKind) -> int:
    return padded_bytes(tensor.nbytes, tensor.type, tensor.shape[0], kind)
