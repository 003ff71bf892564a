"""Frozen inputs and results of the memory model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Program = Literal["llama-server", "llama-cli", "llama-bench", "llama-fit-params"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
LazyMode = Literal["auto", "on", "off"]
SplitMode = Literal["none", "layer", "row", "tensor"]
# What older builds do otherwise, by the ids of profiles/engines/llama.cpp/memory.toml.
OlderRule = Literal[
    "outputs-per-token",
    "mask-f32",
    "no-mixed-batch",
    "latent-v-cache",
    "no-window-cache",
    "one-pool",
    "one-embedding",
    "fused-ops",
]

DRAFT_TOKENS = 3  # common_params_speculative_draft, common/common.h, b11434
HOST = -1  # device index of system memory


class Override(NamedTuple):  # not a dataclass: hundreds are compared for every placement
    """One `-ot PATTERN=BUFFER` (also what --cpu-moe, --n-cpu-moe and --n-cpu-ffn turn into). First match wins."""

    pattern: str
    device: int  # index of the GPU, or HOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides memory and speed in one llama.cpp process; all values are final (no auto)."""

    program: Program = "llama-server"
    context: int  # -c as the engine sees it: the pool when unified, else the total over slots (tokens)
    parallel: int = 1  # -np
    kv_unified: bool = False
    batch: int = 2048
    ubatch: int = 512
    flash_attn: bool = True
    flash_attn_auto: bool = (
        False  # the engine gives it up where a layer's attention would run on another device
    )
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    gpu_layers: int = 0  # -ngl; more than all layers is all of them, the output layer included
    devices: tuple[
        int, ...
    ] = ()  # --device: the GPUs that are used, in the engine's order; empty: all of them
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()  # by GPU of the machine; empty: by free memory, as the engine does
    main_gpu: int = 0  # one of those used; without -mg the first of them
    overrides: tuple[Override, ...] = ()
    kv_offload: bool = True
    op_offload: bool = True
    # GGML_OP_OFFLOAD_MIN_BATCH, at most the micro-batch: nothing is offloaded beyond it. None: the engine's own 32
    offload_min_batch: int | None = None
    repack: bool = True
    swa_full: bool = False
    load_mode: LoadMode = "mmap"
    lazy_mode: LazyMode = "auto"
    threads: int | None = None
    threads_batch: int | None = None  # -tb; None is the same as threads
    cache_ram_bytes: int = 0
    ctx_checkpoints: int = 0
    draft_layers: bool = False  # load and run the model's own next-token-prediction block
    older: frozenset[OlderRule] = frozenset()  # of a build before the one that is modelled
    draft_tokens: int = DRAFT_TOKENS  # tokens that it drafts at most before they are verified
    draft_kv_type_k: str = "f16"  # -ctkd and -ctvd: its cache has types of its own
    draft_kv_type_v: str = "f16"
    verified_tokens: int = 0  # of a draft by anything else: what one batch verifies in a slot
    kept_tokens: int = 0  # of those, for which recurrent states are kept
    draft: Settings | None = None  # of a model that drafts (ModelTable.draft); its context is this one's
    slot_limit: int | None = None  # --kv-unified-per-slot: most tokens of one conversation in a shared pool
    mmproj: bool = False  # the model's projector is loaded, for images
    mmproj_offload: bool = True
    mmproj_device: int | None = None  # index of the GPU; None: the first that is used
    image_min_tokens: int | None = None  # None: the projector's own limits
    image_max_tokens: int | None = None
    image_batch_tokens: int = 1024  # --mtmd-batch-max-tokens: images of one size that are read together

    @property
    def context_per_slot(self) -> int:
        """Tokens that one conversation can have."""
        tokens = self.context if self.kv_unified else self.context // self.parallel
        return tokens if self.slot_limit is None else min(tokens, self.slot_limit)

    def used_devices(self, count: int) -> tuple[int, ...]:
        """Which of the machine's `count` GPUs the model is given, in the engine's order."""
        if self.split_mode == "none" and count:
            return (self.main_gpu,)
        return self.devices or tuple(range(count))


def offload_threshold(tokens: int, ubatch: int) -> dict[str, object]:
    """GGML_OP_OFFLOAD_MIN_BATCH as settings: no batch is as large as one beyond the micro-batch."""
    return {"offload_min_batch": tokens} if tokens <= ubatch else {"op_offload": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """One device's buffers, as llama.cpp's memory breakdown counts them.

    `pool_bytes` is no part of it: what the backend's pool of temporary buffers grows to on a long prompt, and what
    the compute buffer itself grows by. Nor is `fused_bytes`: what a CUDA device's compute buffer is larger by than in a
    dry run without one, for the tensors that its fused kernels hold longer (cuda_fusion.py).
    """

    weights_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0
    pool_bytes: int = 0
    fused_bytes: int = 0

    def __add__(self, other: DeviceBytes) -> DeviceBytes:
        return DeviceBytes(
            weights_bytes=self.weights_bytes + other.weights_bytes,
            context_bytes=self.context_bytes + other.context_bytes,
            compute_bytes=self.compute_bytes + other.compute_bytes,
            pool_bytes=self.pool_bytes + other.pool_bytes,
            fused_bytes=self.fused_bytes + other.fused_bytes,
        )

    @property
    def total_bytes(self) -> int:
        """The sum of the breakdown's three."""
        return self.weights_bytes + self.context_bytes + self.compute_bytes

    @property
    def working_bytes(self) -> int:
        """What computing takes, whatever is placed."""
        return self.compute_bytes + self.fused_bytes + self.pool_bytes

    @property
    def peak_bytes(self) -> int:
        """The buffers with what fused kernels hold, and the pool."""
        return self.total_bytes + self.fused_bytes + self.pool_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """llama.cpp's own buffers: one entry per GPU, and the host's. `draft` is what of them a model that drafts has."""

    devices: tuple[DeviceBytes, ...]
    host: DeviceBytes
    repacked_bytes: int = 0  # of the host's weights: in formats of the CPU, beside a mapped file
    draft: Buffers | None = None

    def beside(self, draft: Buffers) -> Buffers:
        """With those of a model that drafts: each model and context has its own."""
        return Buffers(
            devices=tuple(own + more for own, more in zip(self.devices, draft.devices, strict=True)),
            host=self.host + draft.host,
            repacked_bytes=self.repacked_bytes + draft.repacked_bytes,
            draft=draft,
        )
