"""What a multimodal projector (mmproj file) takes: its weights, and the compute buffer of its vision tower.

llama.cpp loads the whole file onto one device, with a scheduler of its own: the first GPU, or what --mmproj-device or
the first --device says, or the CPU under --no-mmproj-offload (clip_ctx in tools/mtmd/clip.cpp and common/arg.cpp,
b11434). The compute buffer is reserved for a warm-up image. It grows when a larger one comes, and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plan_llama.memory.cuda_pool import Operations
from plan_llama.memory.flash_attention import CUDA_HEADS
from plan_llama.memory.scheduler import (
    CPU_KIND,
    BackendKind,
    SchedulerOptions,
    compute_sizes,
    padded_bytes,
)
from plan_llama.memory.types import HOST, Settings
from plan_llama.models.images import Image, Limits, kind, limits
from plan_llama.models.types import ModelSpec

if TYPE_CHECKING:  # the graphs of towers are imported where one is built
    from plan_llama.memory.towers.vit import Shape

# Of a tower whose graph is not described: f32 rows of the width and of the feed-forward that may live at once. Above
# what every described tower without masks needs.
_ROWS, _WIDE_ROWS = 8, 2
_LEAST_PIXELS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Compute:
    """A tower's compute buffers: on its own device, and, where that is a GPU, in system memory.

    `pool_bytes` is what a CUDA or HIP backend's pool grows by beside them (cuda_pool.py).
    """

    device_bytes: int
    host_bytes: int
    pool_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorUse:
    """A projector under a plan. `device` is a GPU's index, or HOST."""

    device: int
    weights_bytes: int
    warmup: Compute
    largest: Compute
    images: Limits | None  # None: the type is not described, and the compute buffer an upper bound
    flash_attn: bool = True  # False: off, or not known to the backend for heads of that size

    @property
    def device_bytes(self) -> int:
        """On its device, once the largest image has come."""
        return self.weights_bytes + self.largest.device_bytes

    @property
    def host_bytes(self) -> int:
        """In system memory, once the largest image has come."""
        return self.device_bytes if self.device == HOST else self.largest.host_bytes

    def on(self, device: int) -> int:
        """Bytes on one GPU."""
        return self.device_bytes if device == self.device else 0

    def pool_on(self, device: int) -> int:
        """What the pool of one GPU grows by."""
        return self.largest.pool_bytes if device == self.device else 0


class Projector:
    """One projector file. Make one per file; it remembers."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.kind = kind(spec.hparams)
        self._tensors = {tensor.name: tensor for tensor in spec.tensors}
        self._compute: dict[object, Compute] = {}
        self._weights: dict[BackendKind, int] = {}

    def use(self, settings: Settings, kinds: Sequence[BackendKind]) -> ProjectorUse:
        """What it takes under these settings; `kinds` are the backends of the machine's GPUs."""
        from plan_llama.memory.towers.families import FAMILIES

        device = device_of(settings, len(kinds))
        backend = CPU_KIND if device == HOST else kinds[device]
        images = limits(
            self.spec.hparams,
            max_tokens=settings.image_max_tokens,
            min_tokens=settings.image_min_tokens,
            ubatch=settings.ubatch,
            batch_tokens=settings.image_batch_tokens,
        )
        warmup = largest = self._upper_bound()
        if images is not None and self.kind in FAMILIES:
            try:
                warmup, largest = (
                    self.compute(image, backend, flash_attn=settings.flash_attn)
                    for image in (images.warmup, images.largest)
                )
            except KeyError:  # a tensor is missing that the engine would ask for as well
                images = None
        # llama-server caps images at the micro-batch after it has estimated the warm-up, never above it
        grown = Compute(
            max(warmup.device_bytes, largest.device_bytes),
            max(warmup.host_bytes, largest.host_bytes),
            max(warmup.pool_bytes, largest.pool_bytes),
        )
        return ProjectorUse(
            device=device,
            weights_bytes=self.weights_bytes(backend),
            warmup=warmup,
            largest=grown,
            images=images,
            flash_attn=images is None or self.flash_attn(backend, wanted=settings.flash_attn),
        )

    def weights_bytes(self, backend: BackendKind) -> int:
        """All tensors of the file, in one buffer of a backend."""
        if backend not in self._weights:
            self._weights[backend] = sum(
                padded_bytes(t.nbytes, t.type, t.shape[0], backend) for t in self.spec.tensors
            )
        return self._weights[backend]

    def flash_attn(self, backend: BackendKind, *, wanted: bool = True) -> bool:
        """Whether attention is flash attention: wanted, and known to the backend for heads of that size."""
        return wanted and (not backend.cuda_sizes or self._shape(1).head in CUDA_HEADS)

    def compute(self, image: Image, backend: BackendKind, *, flash_attn: bool = True) -> Compute:
        """The compute buffers for so many images of a size. `backend` CPU_KIND is a tower that stays on the host.

        Raises KeyError where the file lacks a tensor of its graph.
        """
        key = (image, backend, flash_attn)
        if key not in self._compute:
            self._compute[key] = self._walk(image, backend, flash_attn=flash_attn)
        return self._compute[key]

    def _walk(self, image: Image, backend: BackendKind, *, flash_attn: bool) -> Compute:
        from plan_llama.memory.towers.families import FAMILIES

        found = limits(self.spec.hparams)
        graph = FAMILIES[self.kind](
            self.spec,
            self._tensors,
            self._shape(found.merge if found else 1),
            image,
            flash_attn=self.flash_attn(backend, wanted=flash_attn),
        )
        graph.build()
        pool = Operations(graph.g.nodes).pool_size((), backend.chip)
        on_host = backend == CPU_KIND
        kinds = (CPU_KIND,) if on_host else (backend, CPU_KIND)
        sizes = compute_sizes(graph.g, SchedulerOptions(kinds=kinds))
        return Compute(sizes[0], 0 if on_host else sizes[1], pool)

    def _upper_bound(self) -> Compute:
        """For a tower that is not described: what a plain transformer over its largest image may need at most."""
        params = self.spec
        if not params.hparams.get("has_vision_encoder"):
            return Compute(0, 0, 0)
        patch = params.int_param("vision.patch_size")
        size, most = params.int_param("vision.image_size", 0), params.int_param("vision.image_max_pixels", 0)
        pixels = max(size * size, most, _LEAST_PIXELS)
        embd, ffn = self._shape(1).embd, params.int_param("vision.feed_forward_length", 0)
        row = 4 * (_ROWS * embd + _WIDE_ROWS * ffn)
        return Compute(pixels // patch**2 * row, 4 * 3 * pixels, 2 * pixels // patch**2 * (embd + ffn))

    def _shape(self, merge: int) -> Shape:
        from plan_llama.memory.towers.vit import Shape

        return Shape(
            embd=self.spec.int_param("vision.embedding_length"),
            heads=max(1, self.spec.int_param("vision.attention.head_count")),
            blocks=self.spec.int_param("vision.block_count"),
            patch=self.spec.int_param("vision.patch_size"),
            merge=merge,
        )


def device_of(settings: Settings, devices: int) -> int:
    """The GPU that a projector is loaded to, or HOST."""
    if not settings.mmproj_offload or not devices:
        return HOST
    if settings.mmproj_device is not None:
        return settings.mmproj_device
    return settings.devices[0] if settings.devices and settings.split_mode != "none" else 0
