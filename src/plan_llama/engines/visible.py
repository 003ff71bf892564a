"""Which cards the environment of a command leaves it, and in which order.

As CUDA and HIP read it: indices or UUID prefixes, and the first that names no card ends the list; an empty one leaves
none. The container toolkit's NVIDIA_VISIBLE_DEVICES also knows `all`, `none` and `void`. Vulkan has
GGML_VK_VISIBLE_DEVICES (ggml/src/ggml-vulkan/ggml-vulkan.cpp, b11434).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plan_llama.engines.overrides import device_names
from plan_llama.findings import Finding
from plan_llama.hardware.types import Gpu

_VARIABLES = {
    "cuda": ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "rocm": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "vulkan": ("GGML_VK_VISIBLE_DEVICES",),
}


def visible(gpus: Sequence[Gpu], env: Mapping[str, str]) -> tuple[tuple[int, ...], list[Finding]]:
    """The cards that are left, by their index among the machine's, and a note for each variable that takes some."""
    left = tuple(range(len(gpus)))
    said = []
    for backend, variables in _VARIABLES.items():
        for variable in variables:
            if variable not in env or not any(gpu.backend == backend for gpu in gpus):
                continue
            own = [index for index in left if gpus[index].backend == backend]
            chosen = _chosen(env[variable], [gpus[index] for index in own])
            if chosen == tuple(range(len(own))):
                continue
            others = tuple(index for index in left if gpus[index].backend != backend)
            left = (*(own[place] for place in chosen), *others)
            text = f"{variable}={env[variable]} leaves {len(chosen)} of {len(own)} cards"
            said.append(Finding(id="devices-hidden", severity="note", text=text, fix=f"leave {variable} out"))
    return left, said


def names(gpus: Sequence[Gpu], left: Sequence[int]) -> tuple[str, ...]:
    """The engine's name of each of the machine's cards, counting those that it sees; empty for one that is hidden."""
    counted = dict(zip(left, device_names([gpus[index] for index in left]), strict=True))
    return tuple(counted.get(index, "") for index in range(len(gpus)))


def _chosen(text: str, gpus: Sequence[Gpu]) -> tuple[int, ...]:
    if text.strip() == "all":
        return tuple(range(len(gpus)))
    chosen: list[int] = []
    for part in (item.strip() for item in text.split(",")):
        match = [
            index
            for index, gpu in enumerate(gpus)
            if part == str(index) or (part.startswith("GPU-") and gpu.uuid and gpu.uuid.startswith(part))
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    return tuple(chosen)
