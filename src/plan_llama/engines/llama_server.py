"""The shortest command that makes llama-server do what the settings say. Flags and defaults of b11434."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from plan_llama.engines import overrides as placing
from plan_llama.engines.command_settings import automatic_load_mode
from plan_llama.engines.launch import LaunchCommand
from plan_llama.engines.left_out import CACHE_RAM_MIB, CTX_CHECKPOINTS, OFFLOAD_THRESHOLD
from plan_llama.errors import InputError
from plan_llama.hardware.types import Gpu, Machine
from plan_llama.memory import patterns
from plan_llama.memory.types import Override, Settings
from plan_llama.models.images import BATCH_TOKENS
from plan_llama.models.types import ModelSpec
from plan_llama.units import MIB

ENGINE = "llama.cpp"
BUILD = 11434

SAMPLING = {
    "temperature": "--temp",
    "temp": "--temp",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "repetition_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}


def command(
    settings: Settings,
    *,
    model: ModelSpec,
    machine: Machine,
    model_path: str,
    executable: str = "llama-server",
    build: int = BUILD,
    host: str = "127.0.0.1",
    port: int = 8080,
    alias: str | None = None,
    sampling: Mapping[str, float] | None = None,
    device_names: Sequence[str] | None = None,
    mmproj_path: str | None = None,
    extra: Sequence[str] = (),
) -> LaunchCommand:
    """The command for settings that are final.

    `device_names` replaces llama.cpp's names of the machine's GPUs (for devices that stand in for them).
    Reading it back with `to_settings` gives the same settings. Raises InputError for overrides that `-ot`
    cannot carry (a comma in a pattern), a device that is not there, and a sampling value that llama-server
    has no flag for.
    """
    names = tuple(device_names) if device_names is not None else placing.device_names(machine.gpus)
    argv = [executable, "-m", model_path, *_projector(settings, mmproj_path, names)]
    argv += ["-c", str(settings.context), "-np", str(settings.parallel)]
    if settings.kv_unified:
        argv.append("-kvu")
    if settings.slot_limit is not None:
        argv += ["--kv-unified-per-slot", str(settings.slot_limit)]
    argv += _placement(settings, model, names)
    argv += _batches(settings)
    argv += ["-fa", "on" if settings.flash_attn else "off"]
    for flag, kind in (("-ctk", settings.kv_type_k), ("-ctv", settings.kv_type_v)):
        if kind != "f16":
            argv += [flag, kind]
    for flag, wanted in (
        ("-nkvo", not settings.kv_offload),
        ("--no-op-offload", not settings.op_offload),
        ("-nr", not settings.repack),
        ("--swa-full", settings.swa_full),
    ):
        if wanted:
            argv.append(flag)
    if settings.load_mode not in ("auto", automatic_load_mode(machine, range(len(machine.gpus)))):
        argv += ["--load-mode", settings.load_mode]
    if settings.threads is not None:
        argv += ["-t", str(settings.threads)]
    if settings.threads_batch is not None:
        argv += ["-tb", str(settings.threads_batch)]
    if settings.cache_ram_bytes != CACHE_RAM_MIB * MIB:
        argv += ["--cache-ram", str(settings.cache_ram_bytes // MIB)]
    if settings.ctx_checkpoints != CTX_CHECKPOINTS:
        argv += ["--ctx-checkpoints", str(settings.ctx_checkpoints)]
    if settings.draft_layers:
        argv += ["--spec-type", "draft-mtp"]
    argv += ["--fit", "off"]  # everything is placed here; the engine's own fitting would only get in the way
    argv += _sampling(sampling or {})
    if alias is not None:
        argv += ["--alias", alias]
    argv += ["--host", host, "--port", str(port), *extra]
    return LaunchCommand(
        engine=ENGINE, build=build, argv=tuple(argv), env=MappingProxyType(_env(settings, machine.gpus))
    )


def _placement(settings: Settings, model: ModelSpec, names: Sequence[str]) -> list[str]:
    """Layers, devices and overrides."""
    if not names:
        return []
    every = settings.gpu_layers > model.blocks
    argv = ["-ngl", "all" if every else str(settings.gpu_layers)]
    if len(names) > 1:
        argv += _devices(settings, names)
    return argv + _overrides(settings.overrides, names)


def _projector(settings: Settings, path: str | None, names: Sequence[str]) -> list[str]:
    """The projector's file, and what differs from the engine's defaults for it."""
    if not settings.mmproj or path is None:
        return []
    argv = ["--mmproj", path]
    if not settings.mmproj_offload and names:
        argv.append("--no-mmproj-offload")
    elif settings.mmproj_device is not None:
        argv += ["--mmproj-device", names[settings.mmproj_device]]
    for flag, tokens in (
        ("--image-min-tokens", settings.image_min_tokens),
        ("--image-max-tokens", settings.image_max_tokens),
    ):
        if tokens is not None:
            argv += [flag, str(tokens)]
    if settings.image_batch_tokens != BATCH_TOKENS:
        argv += ["--mtmd-batch-max-tokens", str(settings.image_batch_tokens)]
    return argv


def _devices(settings: Settings, names: Sequence[str]) -> list[str]:
    """Which devices share the model, in which order and how."""
    if settings.split_mode == "none":
        return ["-sm", "none", "-mg", str(settings.main_gpu)]
    argv = [] if settings.split_mode == "layer" else ["-sm", settings.split_mode]
    used = settings.used_devices(len(names))
    if settings.devices:
        argv += ["--device", ",".join(names[i] for i in used)]
    shares = settings.tensor_split
    if any(shares) and len(used) > 1:
        argv += ["-ts", ",".join(_number(shares[i] if i < len(shares) else 0.0) for i in used)]
    if settings.main_gpu != used[0]:
        if settings.main_gpu not in used:
            raise InputError(f"main GPU {settings.main_gpu} is not among the devices used")
        argv += ["-mg", str(used.index(settings.main_gpu))]
    return argv


def _batches(settings: Settings) -> list[str]:
    argv = []
    if settings.batch != min(2048, settings.context):
        argv += ["-b", str(settings.batch)]
    if settings.ubatch != min(512, settings.batch):
        argv += ["-ub", str(settings.ubatch)]
    return argv


def _overrides(overrides: tuple[Override, ...], names: Sequence[str]) -> list[str]:
    """Overrides in their order: what --cpu-moe, --n-cpu-moe or --n-cpu-ffn would make is written so.

    One `-ot` holds all others where the order allows it: the engine warns of a repeated one.
    """
    if not overrides:
        return []
    for flag, make in (("-ncmoe", patterns.n_cpu_moe), ("-ncffn", patterns.n_cpu_ffn)):
        for count in range(len(overrides), 0, -1):
            front, back = overrides[: len(overrides) - count], overrides[len(overrides) - count :]
            if back == make(count):
                return [*_patterns(front, names), flag, str(count)]
    if overrides[-1] == patterns.cpu_moe():
        return [*_patterns(overrides[:-1], names), "-cmoe"]
    return _patterns(overrides, names)


def _patterns(overrides: tuple[Override, ...], names: Sequence[str]) -> list[str]:
    if not overrides:
        return []
    for item in overrides:
        if "," in item.pattern or "=" in item.pattern or not item.pattern:
            raise InputError(
                f"tensor override {item.pattern!r} cannot be written",
                hint="-ot separates overrides by ',' and ends a pattern at '='",
            )
    return ["-ot", ",".join(f"{o.pattern}={placing.buffer_name(o.device, names)}" for o in overrides)]


def _sampling(sampling: Mapping[str, float]) -> list[str]:
    argv = []
    for key, value in sampling.items():
        flag = SAMPLING.get(key)
        if flag is None:
            raise InputError(
                f"llama-server has no flag for the sampling value '{key}'",
                hint=f"it knows {', '.join(SAMPLING)}",
            )
        argv += [flag, _number(value)]
    return argv


def _number(value: float) -> str:
    """A number as short as it is exact."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _env(settings: Settings, gpus: Sequence[Gpu]) -> dict[str, str]:
    """CUDA orders unequal cards by speed, the plan by PCI bus as the driver does; a threshold of op-offload has no
    argument."""
    cards = {(gpu.name, gpu.total_bytes) for gpu in gpus if gpu.backend == "cuda"}
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if len(cards) > 1 else {}
    if settings.offload_min_batch is not None and settings.op_offload:
        env[OFFLOAD_THRESHOLD] = str(settings.offload_min_batch)
    return env
