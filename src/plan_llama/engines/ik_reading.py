"""What a command of ik_llama.cpp decides about memory and speed, told in the arguments of llama.cpp.

Its defaults and its own arguments: common/common.h, common/common.cpp, src/llama.cpp and src/llama-load-tensors.cpp at
the commit that profiles/engines/ik_llama.cpp names. What has no counterpart is said, and not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from plan_llama.engines import memory_rules
from plan_llama.engines.command_settings import CommandReading, to_settings
from plan_llama.engines.commandline import ParsedArgument, ParsedCommand, parse
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.ik_llama import ENGINE
from plan_llama.engines.reading_notes import argument_findings
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.patterns import expert_layers
from plan_llama.memory.types import HOST
from plan_llama.models.spec import EXPERT
from plan_llama.models.types import ModelSpec

_BLOCK = re.compile(r"blk\.(\d+)\.")
# Cache types of its own, by one of llama.cpp's that is no smaller.
_KV_TYPES = {"q6_0": "q8_0", "q8_KV": "q8_0"}
_SAME = {"-ctx-ckpt": "--ctx-checkpoints", "-hfr": "-hf"}
_UNCOUNTED = {
    "-sas": "",  # without effect on memory
    "--fit": "it places layers and experts itself, which is not modelled",
    "--spec-type": "drafting is not counted",
    "-ctk-first": "layers with another cache type are not counted as such",
    "-ctk-last": "layers with another cache type are not counted as such",
    "-ctv-first": "layers with another cache type are not counted as such",
    "-ctv-last": "layers with another cache type are not counted as such",
    "-muge": "merged tensors are not counted",
    "-mtprot": "the requantised output is not counted",
    "--swa-compress": "the cache of layers with a window is smaller than counted",
    "-thp": "",
}


def ik_settings(parsed: ParsedCommand, *, model: ModelSpec, machine: Machine) -> CommandReading:
    """Like `to_settings`, for a command of ik_llama.cpp."""
    found: list[Finding] = [*argument_findings(parsed)]
    usable = [
        item
        for item in parsed.arguments
        if item.argument and item.status in ("ok", "duplicate") and not item.argument.ignored
    ]
    table = FlagTable.load()
    words = [parsed.executable, "-np", "1", "-fa", "on", "--fit", "off"]
    if not any("-ngl" in item.argument.names for item in usable if item.argument):
        words += ["-ngl", "all"]
    mapped, locked = True, False
    for item in usable:
        names = item.argument.names if item.argument else ()
        mapped = mapped and not {"--no-mmap", "-rtr"} & set(names)
        locked = locked or "--mlock" in names
        words += _translated(item, names, model, machine, table)
        found += _uncounted(item, names)
    mode = ("mmap+mlock" if locked else "mmap") if mapped else ("mlock" if locked else "none")
    words += ["--load-mode", mode]
    reading = to_settings(parse(words, table=table), model=model, machine=machine)
    own = {text.text for text in reading.findings if text.id != "flag-deprecated"}
    found += [item for item in reading.findings if item.text in own]
    older = memory_rules.of_engine(ENGINE, None)
    if not reading.settings.flash_attn:
        older |= {"latent-v-cache"}  # kv^T of -mla 1, which is what a file without attn_kv_b gets
    settings = replace(reading.settings, older=older)
    return replace(reading, settings=settings, findings=tuple(dict.fromkeys(found)))


def _translated(
    item: ParsedArgument, names: Sequence[str], model: ModelSpec, machine: Machine, table: FlagTable
) -> list[str]:
    """An argument in llama.cpp's words; nothing for one that it does not have."""
    value = item.values[0] if item.values else ""
    if "-fa" in names:
        return ["-fa", "off" if value.lower() in ("off", "0") else "on"]
    if "-no-fa" in names:
        return ["-fa", "off"]
    if "-ncmoe" in names:
        layers = _last_experts(int(value) if value.isdigit() else 0, model, machine)
        return ["-ot", f"{expert_layers(layers, HOST).pattern}=CPU"] if layers else []
    if {"-ctk", "-ctv"} & set(names):
        kind = _KV_TYPES.get(value, value)
        if not latent(model):
            return [names[0], kind]
        return ["-ctk", kind, "-ctv", kind] if "-ctk" in names else []  # it has no V cache then
    if "-sm" in names and value in ("graph", "attn"):
        return []
    if "-ngl" in names and value.startswith("-"):
        return ["-ngl", "all"]
    if names[0] in _UNCOUNTED:
        return []
    for name in (_SAME.get(names[0], names[0]), *names[1:]):
        same = table.lookup(name, "llama-server")
        if same is not None and len(same.values) == len(item.values) and not same.removed:
            return [name, *item.values]
    return []


def latent(model: ModelSpec) -> bool:
    """Whether attention keeps one compressed cache (MLA)."""
    return bool(model.hparams.get("attention.key_length_mla") or model.hparams.get("attention.kv_lora_rank"))


def _last_experts(count: int, model: ModelSpec, machine: Machine) -> list[int]:
    """Layers whose experts `-ncmoe N` leaves on the CPU: the last N that have any, or N spread over several cards."""
    layers = sorted(
        {
            int(match[1])
            for tensor in model.tensors
            if EXPERT.search(tensor.name) and (match := _BLOCK.match(tensor.name))
        }
    )
    layers = layers[: len(layers) - model.int_param("nextn_predict_layers", 0)] if layers else []
    if count >= len(layers) or len(machine.gpus) < 2:
        return layers[max(0, len(layers) - count) :]
    return sorted({layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count)})


def _uncounted(item: ParsedArgument, names: Sequence[str]) -> Iterator[Finding]:
    text = next((_UNCOUNTED[name] for name in names if _UNCOUNTED.get(name)), "")
    value = item.values[0] if item.values else ""
    if "-mla" in names and value == "0":
        text = (
            "the numbers are for one compressed cache, as every file without attn_kv_b gets; others keep more"
        )
    if "-sm" in names and value in ("graph", "attn"):
        text = "the numbers are for a split by layer"
    if {"-ctk", "-ctv"} & set(names) and value in _KV_TYPES:
        text = f"counted as {_KV_TYPES[value]}, which is no smaller"
    if text:
        yield Finding(id="not-counted", severity="warning", text=f"{item.words}: {text}")
