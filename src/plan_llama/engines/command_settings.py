"""What a command decides about memory and speed: its arguments over its program's own defaults.

Defaults and rules: common/common.h, common/arg.cpp, tools/server/server.cpp,
tools/llama-bench/llama-bench.cpp and src/llama-context.cpp, b11434. Refused arguments are read as their
author meant them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from plan_llama.engines import draft_settings, memory_rules, visible
from plan_llama.engines import overrides as placing
from plan_llama.engines import values as cxx
from plan_llama.engines.commandline import ParsedArgument, ParsedCommand
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.left_out import OFFLOAD_THRESHOLD, FlashAttn, left_out
from plan_llama.engines.reading_notes import argument_findings, uncounted
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.context import is_causal
from plan_llama.memory.types import (
    DRAFT_TOKENS,
    LazyMode,
    LoadMode,
    Override,
    Settings,
    SplitMode,
    offload_threshold,
)
from plan_llama.models.types import ModelSpec
from plan_llama.units import MIB

UserSet = Literal["ctx", "ngl", "ts", "ot"]

AUTO_SLOTS = 4
FIT_MIN_CONTEXT = 4096
FIT_TARGET_BYTES = 1024 * MIB
_MOST = (1 << 31) - 1
_IMAGE_LIMITS = {
    "image_min_tokens": "--image-min-tokens",
    "image_max_tokens": "--image-max-tokens",
    "image_batch_tokens": "--mtmd-batch-max-tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandReading:
    """Settings of a command before `--fit` changes them, and what `--fit` would look at.

    `user_set` names what the user gave of that which `--fit` would otherwise choose. `devices` are the
    machine's GPUs that the command uses, in its order. `flash_attn` is as asked; `settings.flash_attn` has
    auto resolved to on, which is right where the layer's device supports it.
    """

    settings: Settings
    findings: tuple[Finding, ...]
    fit_enabled: bool
    user_set: frozenset[UserSet]
    fit_targets_bytes: tuple[int, ...] = (FIT_TARGET_BYTES,)  # one for all devices, or one per device
    fit_min_context: int | None = FIT_MIN_CONTEXT  # None: the context is not reduced (-c 0)
    flash_attn: FlashAttn = "auto"
    devices: tuple[int, ...] = ()
    model_path: str | None = None
    mmproj_path: str | None = None
    warmup: bool = True
    hf_repo: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080


def to_settings(parsed: ParsedCommand, *, model: ModelSpec, machine: Machine) -> CommandReading:
    """The settings that a command means for a model on a machine, with a finding for all that is odd in it.

    Raises ModelError where the model's header lacks its block count.
    """
    return Reading(parsed, model, machine).result()


def automatic_load_mode(machine: Machine, devices: Sequence[int]) -> LoadMode:
    """What `--load-mode auto` becomes: mmap, unless a used device reports no support for it.

    Integrated devices of CUDA, HIP and Vulkan report none (their ggml backends, b11434).
    """
    used = [machine.gpus[index] for index in devices]
    shared = any(gpu.integrated and gpu.backend in ("cuda", "rocm", "vulkan") for gpu in used)
    return "none" if shared else "mmap"


class Reading:
    """The command's arguments, looked up by their names; of several the last usable one counts."""

    def __init__(self, parsed: ParsedCommand, model: ModelSpec, machine: Machine) -> None:
        self.parsed, self.model, self.machine = parsed, model, machine
        self.unsaid = left_out(parsed, machine)
        self.bench = parsed.program == "llama-bench"
        self.serves = parsed.program in ("llama-server", "llama-cli")  # llama-cli runs the server in itself
        self.seen, hidden = visible.visible(machine.gpus, parsed.env)
        self.names = visible.names(machine.gpus, self.seen)
        self.every = tuple(range(len(machine.gpus)))
        self.findings: list[Finding] = [*argument_findings(parsed), *hidden]
        usable = [
            item for item in parsed.arguments if item.argument and item.status not in ("bad-value", "removed")
        ]
        self.usable = [item for item in usable if not (item.status == "ignored" and item.from_env)]
        self.last: dict[str, ParsedArgument] = {}
        for item in self.usable:
            today = FlagTable.load().lookup(
                item.spelling, parsed.program
            )  # its build may lack some of its names
            for name in (name for found in (item.argument, today) if found for name in found.names):
                self.last[name] = item

    def text(self, name: str) -> str | None:
        """The value of an argument; of llama-bench's lists the first."""
        item = self.last.get(name)
        if item is None or not item.values:
            return None
        return item.values[0].split(",")[0] if self.bench and name not in ("-m", "-ot") else item.values[0]

    def number(self, name: str, default: int) -> int:
        """A whole number; of llama-bench's lists and ranges the largest."""
        item = self.last.get(name)
        if item is None or not item.values:
            return default
        if self.bench:
            return max(cxx.ranges(item.values[0]) or (default,))
        found = cxx.to_int(item.values[0])
        return default if found is None else found

    def switch(self, name: str, default: bool) -> bool:
        """A switch, or llama-bench's 0|1 (of which the first counts)."""
        item = self.last.get(name)
        if item is None:
            return default
        return item.values[0].split(",")[0] in ("1", "true") if item.values else not item.negated

    def result(self) -> CommandReading:
        """Everything together."""
        drafts = draft_settings.counted(self)
        self.findings += uncounted(self.last, self.serves, "-md" if drafts else None)
        devices = self._devices()
        parallel, unified = self._slots()
        asked = self._asked_context(parallel)
        batch, ubatch = self._batches(asked)
        flash_attn = self._flash_attn()
        slot_limit = self.number("--kv-unified-per-slot", 0) or None
        settings = Settings(
            program=self.parsed.program,
            context=_engine_context(asked, parallel, unified),
            parallel=parallel,
            kv_unified=unified,
            batch=batch,
            ubatch=ubatch,
            flash_attn=flash_attn != "off",
            flash_attn_auto=flash_attn == "auto",
            kv_type_k=self.text("-ctk") or "f16",
            kv_type_v=self.text("-ctv") or "f16",
            gpu_layers=self.gpu_layers(devices, blocks=self.model.blocks),
            split_mode=cast(SplitMode, self.text("-sm") or "layer"),
            devices=() if devices == self.every or self.text("-sm") == "none" else devices,
            tensor_split=self.tensor_split(devices),
            main_gpu=self.main_gpu(devices),
            overrides=placing.read(self.usable, self.names, self.say, bench=self.bench),
            kv_offload=not self.switch("-nkvo", False) if self.bench else self.switch("-kvo", True),
            repack=self.switch("--repack", True),
            swa_full="--swa-full" in self.last,
            load_mode=self._load_mode(devices),
            lazy_mode=self._lazy_mode(devices),
            threads=self._threads("-t"),
            threads_batch=self._threads("-tb"),
            **self._offload(devices, ubatch),
            cache_ram_bytes=self._cache_ram(),
            ctx_checkpoints=max(0, self.number("-ctxcp", self.unsaid.ctx_checkpoints)) if self.serves else 0,
            draft_layers=self.serves and "draft-mtp" in draft_settings.kinds(self),
            older=memory_rules.older(self.parsed.build),
            draft_tokens=max(0, self.number("--spec-draft-n-max", DRAFT_TOKENS)),
            draft_kv_type_k=self.text("-ctkd") or "f16",
            draft_kv_type_v=self.text("-ctvd") or "f16",
            verified_tokens=draft_settings.verified_tokens(self),
            kept_tokens=draft_settings.kept_tokens(self),
            slot_limit=slot_limit,
            **self._projector(devices),
        )
        if drafts is not None:
            settings = replace(settings, draft=draft_settings.read(self, drafts, settings, devices))
            if draft_settings.is_idle(self):
                say = "a draft model without --spec-type is loaded and takes its memory, but drafts nothing"
                self.say("draft-model-idle", "warning", say, "--spec-type draft-simple")
        minimum: int | None = self.number("-fitc", FIT_MIN_CONTEXT)
        if not self.bench and "-c" in self.last and self.number("-c", 0) == 0:
            minimum = None
        return CommandReading(
            settings=settings,
            findings=tuple(self.findings),
            fit_enabled=self._fit(),
            user_set=self._user_set(settings.overrides),
            fit_targets_bytes=self._fit_targets(),
            fit_min_context=minimum,
            flash_attn=flash_attn,
            devices=devices,
            model_path=self.text("-m"),
            mmproj_path=self.text("-mm"),
            warmup=self.switch("--warmup", True),
            hf_repo=self.text("-hf"),
            host=self.text("--host") or "127.0.0.1",
            port=self.number("--port", 8080),
        )

    def _devices(self) -> tuple[int, ...]:
        given = self.text("-dev")
        if given is None:
            if self.text("-sm") == "none" and self.seen:
                return (self.seen[min(max(0, self.number("-mg", 0)), len(self.seen) - 1)],)
            return self.seen
        return self.seen if given == "auto" else self.listed_devices("--device", given)

    def listed_devices(self, flag: str, given: str) -> tuple[int, ...]:
        """The machine's GPUs by the names that an argument gives."""
        found = []
        for name in () if given == "none" else given.split("/" if self.bench else ","):
            device, accepted = placing.device_of(name, self.names)
            if device is not None and device >= 0:
                found.append(device)
            if not accepted:
                have = ", ".join(filter(None, self.names)) or "none"
                say = f"{flag} {given}: no device {name} on this machine"
                self.say("unknown-device", "error", say, f"it has: {have}")
        return tuple(dict.fromkeys(found))

    def _slots(self) -> tuple[int, bool]:
        if self.bench:
            return 1, False
        given = self.number("-np", self.unsaid.parallel)
        unified = self.switch("-kvu", False)
        if given < 0 and self.serves:
            return AUTO_SLOTS, True
        return max(1, min(given, 1 << 16)), unified

    def _asked_context(self, parallel: int) -> int:
        """What goes into the engine's context parameter, 0 resolved."""
        if self.bench:
            pair = [cxx.to_int(part) or 0 for part in (self.text_raw("-pg") or "0,0").split(",")]
            tests = max(self.number("-p", 512), self.number("-n", 128), sum(pair))
            return max(1, tests + self.number("-d", 0))
        given = self.number("-c", self.unsaid.context)
        if given < 0:
            self.say(
                "bad-context",
                "error",
                f"-c {given}: a context cannot be negative",
                "write -c 0 for the model's own",
            )
            given = 0
        per_slot = self.number("--kv-unified-per-slot", 0)
        if given == 0 and per_slot > 0 and "-c" not in self.last:
            given = min(parallel * per_slot, _MOST)
        return given or self.model.context_train or FIT_MIN_CONTEXT

    def text_raw(self, name: str) -> str | None:
        """A value with its commas."""
        item = self.last.get(name)
        return item.values[0] if item and item.values else None

    def _batches(self, context: int) -> tuple[int, int]:
        """n_batch is cut to the context where attention is causal, n_ubatch to n_batch; 0 of the latter is the
        former (llama_context)."""
        given = self.number("-b", 2048)
        if not given:
            self.say("bad-batch", "error", "-b 0: llama.cpp ends at a batch of no tokens", "leave -b out")
        batch = min(max(1, given), context) if is_causal(self.model) else max(1, given)
        ubatch = self.number("-ub", 512)
        ubatch = batch if ubatch <= 0 else min(ubatch, batch)
        if "--embedding" in self.last or "--rerank" in self.last:
            batch = ubatch
        return batch, ubatch

    def _flash_attn(self) -> FlashAttn:
        word = self.text("-fa")
        if word is None:
            return "on" if self.parsed.meant.get("flash_attn") else self.unsaid.flash_attn
        return "on" if word in cxx.TRUE_WORDS else "off" if word in cxx.FALSE_WORDS else "auto"

    def gpu_layers(self, devices: tuple[int, ...], flag: str = "-ngl", *, blocks: int) -> int:
        """-1 (auto) and -2 (all) are all layers and the output; a number is kept as given."""
        everything = blocks + 1
        if not devices:
            return 0
        word = self.text_raw(flag)
        given = self.number(flag, -1)
        if word in ("auto", "all") or (given < 0 and self.unsaid.all_layers):
            return everything
        return max(0, given)

    def tensor_split(self, devices: tuple[int, ...]) -> tuple[float, ...]:
        """The shares by GPU of the machine; empty where none are given."""
        word = self.text("-ts")
        if word is None:
            return ()
        separators = ";/" if self.bench else ",/"
        for character in separators:
            word = word.replace(character, " ")
        parts = [cxx.to_float(part) or 0.0 for part in word.split()]
        if devices == self.every:
            return tuple(parts[: len(self.every)])
        shares = dict(zip(devices, parts, strict=False))
        return tuple(shares.get(i, 0.0) for i in self.every)

    def main_gpu(self, devices: tuple[int, ...]) -> int:
        """The machine's GPU that -mg means."""
        if self.text("-sm") == "none" and devices and "-dev" not in self.last:
            return devices[0]
        index = self.number("-mg", 0)
        return devices[index] if 0 <= index < len(devices) else 0

    def _load_mode(self, devices: tuple[int, ...]) -> LoadMode:
        given = self.text("-lm")
        meant = self.parsed.meant
        if given is None and {"mmap", "mlock", "direct_io"} & set(meant):
            if meant.get("direct_io"):
                return "dio"
            mapped, locked = meant.get("mmap", True), meant.get("mlock", False)
            return ("mmap+mlock" if locked else "mmap") if mapped else ("mlock" if locked else "none")
        if given not in (None, "auto"):
            return cast(LoadMode, given)
        return automatic_load_mode(self.machine, devices)

    def _lazy_mode(self, devices: tuple[int, ...]) -> LazyMode:
        """`auto` is off where a used device has no support for mapped memory (llama_model_base::load_tensors)."""
        given = self.text("-lzm") or "auto"
        if given == "auto" and automatic_load_mode(self.machine, devices) == "none":
            return "off"
        return cast(LazyMode, given)

    def _offload(self, devices: tuple[int, ...], ubatch: int) -> dict[str, Any]:
        """Whether large batches run on a card whatever holds their weights, and from how many tokens on."""
        on = not self.switch("-nopo", False) if self.bench else self.switch("--op-offload", True)
        if not on or (self.machine.gpus and not devices):
            return {"op_offload": False}
        given = self.parsed.env.get(OFFLOAD_THRESHOLD, "")
        if not given.isascii() or not given.isdigit() or len(given) > 9:
            return {"op_offload": True}
        return offload_threshold(int(given), ubatch)

    def _threads(self, flag: str) -> int | None:
        if flag not in self.last:
            return None
        given = self.number(flag, 0)
        return given if given > 0 else self.machine.cpu.logical_cores

    def _projector(self, devices: tuple[int, ...]) -> dict[str, Any]:
        """--mmproj and its kin. -hf loads the repository's own projector unless --no-mmproj stands there."""
        named = "-mm" in self.last or "-mmu" in self.last
        found = self.serves and (named or ("-hf" in self.last and self.switch("--mmproj-auto", True)))
        if not found:
            return {}
        offload, device = self.switch("--mmproj-offload", True), None
        if (word := self.text("-mmdev")) is not None:
            index, accepted = placing.device_of(word, self.names)
            offload = word != "none"
            device = index if index is not None and index >= 0 else None
            if offload and not accepted:
                have = ", ".join(filter(None, self.names)) or "none"
                say = f"--mmproj-device {word}: no device {word} on this machine"
                self.say("unknown-device", "error", say, f"it has: {have}")
        elif "-dev" in self.last:
            offload, device = offload and bool(devices), devices[0] if devices else None
        limits = {name: self.number(flag, 0) for name, flag in _IMAGE_LIMITS.items()}
        return {
            "mmproj": True,
            "mmproj_offload": offload,
            "mmproj_device": device,
            **{name: value for name, value in limits.items() if value > 0},
        }

    def _cache_ram(self) -> int:
        """-1 is without limit: all of the RAM."""
        if not self.serves:
            return 0
        given = self.number("-cram", self.unsaid.cache_ram_mib)
        if given < 0:
            say = "the prompt cache has no limit (--cache-ram -1): it grows until the RAM is full"
            self.say("prompt-cache-host-growth", "warning", say, "give it a limit in MiB: --cache-ram 2048")
            return self.machine.ram.total_bytes
        return given * MIB

    def _fit(self) -> bool:
        if self.bench:
            return "-fitt" in self.last
        if self.parsed.program == "llama-fit-params":
            return self.text("-fitp") not in cxx.TRUE_WORDS
        return self.unsaid.fit and self.text("-fit") not in cxx.FALSE_WORDS

    def _user_set(self, overrides: tuple[Override, ...]) -> frozenset[UserSet]:
        found: set[UserSet] = set()
        if "--kv-unified-per-slot" in self.last or "-c" in self.last:
            found.add("ctx")
        if self.text_raw("-ngl") not in (None, "auto") and self.number("-ngl", 0) != -1:
            found.add("ngl")
        if "-ts" in self.last:
            found.add("ts")
        if overrides:
            found.add("ot")
        return frozenset(found)

    def _fit_targets(self) -> tuple[int, ...]:
        word = self.text_raw("-fitt")
        if word is None:
            return (FIT_TARGET_BYTES,)
        parts = [cxx.to_int(part) for part in word.replace("/", ",").split(",")]
        return tuple(part * MIB for part in parts if part is not None and part >= 0) or (FIT_TARGET_BYTES,)

    def say(self, ident: str, severity: Any, text: str, fix: str) -> None:
        """One more finding."""
        self.findings.append(Finding(id=ident, severity=severity, text=text, fix=fix))


def _engine_context(asked: int, parallel: int, unified: bool) -> int:
    """The context after the engine's rounding: to 256 cells, per slot where slots have their own cache."""
    padded = -(-asked // 256) * 256
    if unified:
        return padded
    return -(-(padded // parallel) // 256) * 256 * parallel
