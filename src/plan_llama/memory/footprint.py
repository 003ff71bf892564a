"""What a plan uses in all: llama.cpp's buffers, what lies beyond them, and the pools they come from.

Pure: the constants arrive in `Beyond`, read from profiles by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory import context
from plan_llama.memory.cuda_pool import Chip
from plan_llama.memory.estimate import DeviceMemory, buffers
from plan_llama.memory.scheduler import CUDA_KIND, OTHER_GPU_KIND
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Buffers, Settings

if TYPE_CHECKING:
    from plan_llama.memory.projector import ProjectorUse

Verdict = Literal["fits", "tight", "pages-from-disk", "does-not-fit", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What the engine takes outside its buffers, and what is to stay free. Bytes."""

    context_bytes: dict[str, int]  # by backend
    staging_bytes: int
    staging_direct_bytes: int
    gpu_margin_bytes: int
    gpu_display_margin_bytes: int
    host_margin_bytes: int
    host_margin_ratio: float
    unified_margin_bytes: int
    unified_display_margin_bytes: int
    pinned_spare_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """One GPU under a plan; the parts as llama.cpp names them, and what lies beside them: the driver's share, the
    projector (`projector_bytes`) and what a CUDA device's compute buffer is larger by for fused kernels
    (`fused_bytes`), which a dry run without that device does not show."""

    name: str
    pool: str
    weights_bytes: int
    context_bytes: int
    compute_bytes: int
    overhead_bytes: int
    free_bytes: int
    pool_bytes: int
    projector_bytes: int = 0  # of the overhead
    fused_bytes: int = 0  # of the overhead

    @property
    def total_bytes(self) -> int:
        """The sum of the four parts."""
        return self.weights_bytes + self.context_bytes + self.compute_bytes + self.overhead_bytes

    @property
    def driver_bytes(self) -> int:
        """The overhead without the projector and what fused kernels hold."""
        return self.overhead_bytes - self.projector_bytes - self.fused_bytes

    @property
    def peak_bytes(self) -> int:
        """With the pool of temporary buffers, which grows on a long prompt."""
        return self.total_bytes + self.pool_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """System memory under a plan. `cache_bytes` is what the server's prompt cache and context checkpoints may grow
    to; `checkpoint_bytes` of it is the checkpoints'. `repacked_bytes` of the weights are in formats of the CPU."""

    weights_bytes: int
    context_bytes: int
    compute_bytes: int
    cache_bytes: int
    checkpoint_bytes: int
    lazy_bytes: int
    repacked_bytes: int
    available_bytes: int
    peak_bytes: int
    projector_bytes: int = 0
    growth_bytes: int = 0  # of the compute buffer, with the positions in the cache

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        buffers = self.weights_bytes + self.context_bytes + self.compute_bytes
        return buffers + self.cache_bytes + self.projector_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Memory that uses add up in: one for RAM, one per discrete card; one in all when unified.

    `growth_bytes` is what the uses in it grow by on a long prompt: no part of `used_bytes`, and it has to fit.
    """

    name: str
    total_bytes: int
    available_bytes: int
    used_bytes: int
    margin_bytes: int
    growth_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """What is used once a long prompt was read."""
        return self.used_bytes + self.growth_bytes

    @property
    def spare_bytes(self) -> int:
        """What is left above the margin; negative where the margin is cut into."""
        return self.available_bytes - self.used_bytes - self.margin_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Everything a placement uses on a machine, and whether that fits."""

    devices: tuple[DeviceUse, ...]
    host: HostUse
    pools: tuple[Pool, ...]
    verdict: Verdict
    resident_ratio: float  # share of the host's weights that stays in RAM
    projector: ProjectorUse | None = None
    draft: Buffers | None = None  # of the devices' and the host's buffers, those of a model that drafts


def device_memory(machine: Machine) -> tuple[DeviceMemory, ...]:
    """The machine's GPUs as the memory model sees them."""
    return tuple(
        DeviceMemory(
            free_bytes=gpu.free_bytes,
            kind=replace(CUDA_KIND, chip=Chip.of(gpu.compute_capability or gpu.gfx_target or ""))
            if gpu.backend in ("cuda", "rocm")
            else OTHER_GPU_KIND,
            host_buffer=gpu.backend != "metal",
        )
        for gpu in machine.gpus
    )


def gpu_margin_bytes(machine: Machine, gpu: Gpu, beyond: Beyond, wished_bytes: int | None) -> int:
    """What is to stay free on a card: the user's wish or the default, and what the user reserved."""
    shows = gpu.display is True or machine.os == "windows"
    default = beyond.gpu_display_margin_bytes if shows else beyond.gpu_margin_bytes
    return (default if wished_bytes is None else wished_bytes) + gpu.reserved_bytes


def host_margin_bytes(machine: Machine, beyond: Beyond) -> int:
    """What is to stay free of system memory."""
    if machine.unified:
        desktop = any(gpu.display for gpu in machine.gpus)
        margin = beyond.unified_display_margin_bytes if desktop else beyond.unified_margin_bytes
    else:
        share = int(machine.ram.total_bytes * beyond.host_margin_ratio)
        margin = max(beyond.host_margin_bytes, share)
    return margin + machine.ram.reserved_bytes


def footprint(
    table: ModelTable,
    settings: Settings,
    machine: Machine,
    beyond: Beyond,
    *,
    margin_bytes: int | None = None,
    known: Buffers | None = None,
) -> Footprint:
    """Everything that `settings` use on `machine`. `known` saves working the buffers out again."""
    made = known or buffers(table, settings, device_memory(machine), machine.cpu.isa)
    images = projector_use(table, settings, machine)
    devices = tuple(
        _device(settings, machine, index, made, beyond, images) for index in range(len(machine.gpus))
    )
    host = _host(table, settings, machine, made, beyond, images)
    pools = _pools(machine, devices, host, beyond, margin_bytes)
    verdict, resident = _judge(settings, devices, host, pools)
    return Footprint(
        devices=devices,
        host=host,
        pools=pools,
        verdict=verdict,
        resident_ratio=resident,
        projector=images,
        draft=made.draft,
    )


def projector_use(table: ModelTable, settings: Settings, machine: Machine) -> ProjectorUse | None:
    """What the model's projector takes; None where there is none, or it is not loaded."""
    if table.projector is None or not settings.mmproj:
        return None
    return table.projector.use(settings, [device.kind for device in device_memory(machine)])


def _device(
    settings: Settings,
    machine: Machine,
    index: int,
    made: Buffers,
    beyond: Beyond,
    images: ProjectorUse | None,
) -> DeviceUse:
    gpu, part = machine.gpus[index], made.devices[index]
    # a context is made on every card that the engine is given, also where nothing is placed
    given = index in settings.used_devices(len(machine.gpus))
    projector = images.on(index) if images else 0
    overhead = (beyond.context_bytes[gpu.backend] if given or projector else 0) + projector + part.fused_bytes
    return DeviceUse(
        name=gpu.name,
        pool="memory" if machine.unified else f"gpu{index}",
        weights_bytes=part.weights_bytes,
        context_bytes=part.context_bytes,
        compute_bytes=part.compute_bytes,
        overhead_bytes=overhead,
        free_bytes=gpu.free_bytes,
        pool_bytes=part.pool_bytes + (images.pool_on(index) if images else 0),
        projector_bytes=projector,
        fused_bytes=part.fused_bytes,
    )


def server_cache_bytes(table: ModelTable, settings: Settings) -> int:
    """What the server keeps in system memory when it is busy: prompt cache and context checkpoints, both full."""
    return settings.cache_ram_bytes + checkpoints_bytes(table, settings)


def checkpoints_bytes(table: ModelTable, settings: Settings) -> int:
    """What the context checkpoints of all slots may grow to; only the server makes them."""
    if settings.program != "llama-server" or not settings.ctx_checkpoints:
        return 0
    batch = context.reserved_batch(settings, table.windows, all_outputs=context.encodes(table.spec))
    layers = context.table_layers(table, batch)
    found = settings.parallel * settings.ctx_checkpoints * context.checkpoint_bytes(layers, batch)
    if settings.draft is not None and table.draft is not None:  # each checkpoint holds both
        found += checkpoints_bytes(table.draft, replace(settings.draft, context=settings.context))
    return found


def _host(
    table: ModelTable,
    settings: Settings,
    machine: Machine,
    made: Buffers,
    beyond: Beyond,
    images: ProjectorUse | None,
) -> HostUse:
    part = made.host
    checkpoints = checkpoints_bytes(table, settings)
    cache = settings.cache_ram_bytes + checkpoints
    projector = images.host_bytes if images else 0
    lazy = table.lazy_bytes(settings.lazy_mode)
    total = part.total_bytes + cache + projector
    return HostUse(
        weights_bytes=part.weights_bytes,
        context_bytes=part.context_bytes,
        compute_bytes=part.compute_bytes,
        cache_bytes=cache,
        checkpoint_bytes=checkpoints,
        lazy_bytes=lazy,
        repacked_bytes=made.repacked_bytes,
        available_bytes=machine.ram.available_bytes,
        # the loader's buffers are gone when the first prompt comes
        peak_bytes=total - lazy + max(part.pool_bytes, staging_bytes(table, settings, machine, beyond)),
        projector_bytes=projector,
        growth_bytes=part.pool_bytes,
    )


def staging_bytes(table: ModelTable, settings: Settings, machine: Machine, beyond: Beyond) -> int:
    """What the loader reads into on the way to a GPU; nothing where the file is mapped.

    Source: llama_model_loader::load_all_data (src/llama-model-loader.cpp, b11434): four buffers, large ones for direct
    I/O; a backend without pinned memory or events is given one tensor at a time.
    """
    if not machine.gpus or settings.load_mode in ("mmap", "mmap+mlock"):
        return 0
    if all(gpu.backend in ("cuda", "rocm", "vulkan") for gpu in machine.gpus):
        return beyond.staging_direct_bytes if settings.load_mode == "dio" else beyond.staging_bytes
    return max(tensor.nbytes for tensor in table.spec.tensors)


def _pools(
    machine: Machine,
    devices: Sequence[DeviceUse],
    host: HostUse,
    beyond: Beyond,
    margin_bytes: int | None,
) -> tuple[Pool, ...]:
    ram = Pool(
        name="memory" if machine.unified else "ram",
        total_bytes=machine.ram.total_bytes,
        available_bytes=machine.ram.available_bytes,
        used_bytes=host.total_bytes
        - host.lazy_bytes
        + (sum(d.total_bytes for d in devices) if machine.unified else 0),
        margin_bytes=host_margin_bytes(machine, beyond),
        growth_bytes=host.growth_bytes + (sum(d.pool_bytes for d in devices) if machine.unified else 0),
    )
    if machine.unified:
        return (ram,)
    cards = tuple(
        Pool(
            name=device.pool,
            total_bytes=gpu.total_bytes,
            available_bytes=gpu.free_bytes,
            used_bytes=device.total_bytes,
            # on a card with nothing but the driver's own share there is nothing that could run short
            margin_bytes=gpu_margin_bytes(machine, gpu, beyond, margin_bytes)
            if device.total_bytes > device.driver_bytes
            else 0,
            growth_bytes=device.pool_bytes,
        )
        for gpu, device in zip(machine.gpus, devices, strict=True)
    )
    return (ram, *cards)


def _judge(
    settings: Settings, devices: Sequence[DeviceUse], host: HostUse, pools: Sequence[Pool]
) -> tuple[Verdict, float]:
    """The verdict, and the share of host weights that stays in memory."""
    ram = pools[0]
    # in one pool too: Metal and the GTT let a GPU have a part of it only
    over_card = any(device.peak_bytes > device.free_bytes for device in devices)
    mapped = settings.load_mode in ("mmap", "auto")
    # a repacked weight is no page of the file: it lies in memory of its own
    pageable = host.weights_bytes - host.lazy_bytes - host.repacked_bytes if mapped else 0
    unmovable = ram.peak_bytes - pageable
    if over_card or unmovable > ram.available_bytes:
        return "does-not-fit", 1.0
    room = ram.available_bytes - unmovable
    if pageable > room:
        return "pages-from-disk", max(0.0, room / pageable)
    if all(pool.spare_bytes >= 0 for pool in pools):
        return "fits", 1.0
    return "tight", 1.0
