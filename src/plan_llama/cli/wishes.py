"""From the words of the command line to wishes and a machine: every value checked, every refusal one line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from plan_llama.cli.options import EngineOptions, HardwareOptions, WishOptions
from plan_llama.errors import UsageError
from plan_llama.hardware.overrides import HardwareChoice
from plan_llama.memory.caches import KV_TYPES
from plan_llama.models.types import ModelSpec
from plan_llama.solver.profiles import workload
from plan_llama.solver.types import Objective, Wishes
from plan_llama.units import parse_size

_OBJECTIVES: tuple[Objective, ...] = ("balanced", "speed", "context", "quality")
_LOAD_MODES = ("none", "mmap", "mlock", "mmap+mlock", "dio")
# keys of the JSON's `settings` that a user may fix, with what they take
_PINS = {
    "ubatch": "a number",
    "batch": "a number",
    "threads": "a number",
    "threads_batch": "a number",
    "cache_ram": "MiB",
    "context": "a number",
    "parallel": "a number",
    "kv_type": "a cache type",
    "flash_attn": "on or off",
    "draft_layers": "on or off",
    "op_offload": "on or off",
    "offload_min_batch": "a number",
    "kv_offload": "on or off",
    "mmproj_offload": "on or off",
    "image_max_tokens": "a number",
    "load_mode": " or ".join(_LOAD_MODES),
}
_MOST_TOKENS = 1 << 24


def hardware_choice(options: HardwareOptions) -> HardwareChoice:
    """The hardware options as the hardware package takes them."""
    return HardwareChoice(
        hardware=options.hardware,
        gpu=tuple(options.gpu or ()),
        gpu_free=tuple(options.gpu_free or ()),
        ram=options.ram,
        ram_available=options.ram_available,
        ram_type=options.ram_type,
        ram_channels=options.ram_channels,
        ram_bandwidth=options.ram_bandwidth,
        cpu=options.cpu,
        cpu_cores=options.cpu_cores,
        cpu_isa=options.cpu_isa,
        unified=options.unified,
        no_gpu=options.no_gpu,
        reserve=options.reserve,
    )


def wishes(
    options: WishOptions, *, kv_types: Collection[str] = KV_TYPES, takes: Mapping[str, str] | None = None
) -> Wishes:
    """The request. `kv_types` are those of the engine, `takes` what it lets pin instead of llama.cpp's settings.

    Raises UsageError for a value that cannot be meant.
    """
    pins = dict(_pin(text, _PINS if takes is None else takes) for text in options.pin or ())
    context = _context(pins.pop("context", None) or options.ctx)
    kv_type = pins.pop("kv_type", None) or options.kv_type
    if kv_type is not None and kv_type not in kv_types:
        raise UsageError(f"--kv-type {kv_type!r} is not known", hint=f"it is one of {', '.join(kv_types)}")
    parallel = pins.pop("parallel", None)
    if options.objective not in _OBJECTIVES:
        raise UsageError(
            f"--objective {options.objective!r} is not known", hint=f"it is one of {', '.join(_OBJECTIVES)}"
        )
    return Wishes(
        workload=workload(options.workload),
        context=context,
        parallel=int(parallel) if parallel else options.parallel,
        users=options.users,
        ttft_s=options.ttft,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        reuse=options.reuse,
        kv_type=kv_type,
        objective=options.objective,
        margin_bytes=parse_size(options.margin, what="--margin") if options.margin is not None else None,
        allow_paging=options.allow_paging,
        pins=pins,
    )


def check_against_model(options: Wishes, spec: ModelSpec) -> None:
    """Raises UsageError for wishes that this model cannot have."""
    if options.context == "max" and not spec.context_train:
        raise UsageError(
            "--ctx max: the model's header does not say its context", hint="give a number of tokens"
        )
    asked = (options.prompt_tokens or 0) + (options.output_tokens or 0)
    most = options.context if isinstance(options.context, int) else spec.context_train
    if most and asked > most:
        raise UsageError(
            f"a conversation of {asked:,} tokens (--prompt-tokens and --output-tokens) does not go into {most:,}",
            hint="fewer tokens, or a --ctx that holds them",
        )


def engine_build(options: EngineOptions) -> int | None:
    """The build that --engine-build names. Raises UsageError for other engines and misspelt builds."""
    if options.engine != "llama.cpp":
        known = ("ik_llama.cpp", "ollama", "vllm")
        reason = "not for this command" if options.engine in known else "is not known"
        raise UsageError(f"--engine {options.engine}: {reason}", hint="llama.cpp is the engine for it")
    text = options.engine_build
    if text is None:
        return None
    digits = text.removeprefix("b")
    if not _is_number(digits) or not 0 < int(digits) < 10**7:
        raise UsageError(f"--engine-build {text!r}: expected a build such as b11434")
    return int(digits)


def _context(text: str | None) -> int | Literal["max"] | None:
    if text is None:
        return None
    if text == "max":
        return "max"
    factor = 1024 if text[-1:] in "kK" else 1
    digits = text[:-1] if factor > 1 else text
    if not _is_number(digits) or not 0 < int(digits) * factor <= _MOST_TOKENS:
        raise UsageError(
            f"--ctx {text!r}: expected a number of tokens such as 32768 or 32K, at most {_MOST_TOKENS:,}, or max"
        )
    return int(digits) * factor


def _is_number(text: str) -> bool:
    """Digits, and so few that int() takes them at once (it refuses thousands)."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def _pin(text: str, pins: Mapping[str, str]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or key not in pins:
        names = ", ".join(name.replace("_", "-") for name in pins)
        raise UsageError(f"--pin {text!r}: expected KEY=VALUE with a KEY of {names}")
    takes = pins[key]
    ok = True
    if takes in ("a number", "MiB"):
        ok = _is_number(value) and int(value) <= _MOST_TOKENS and (takes == "MiB" or int(value) > 0)
    elif takes == "on or off":
        ok = value in ("on", "off")
    elif key == "load_mode":
        ok = value in _LOAD_MODES
    if not ok:
        raise UsageError(f"--pin {text!r}: {key.replace('_', '-')} takes {takes}")
    return key, value
