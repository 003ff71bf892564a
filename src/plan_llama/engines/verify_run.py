"""One dry run: the engine's devices that stand for the machine's, its arguments, and the prediction for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from plan_llama.engines import bounded, dry_run, memory_rules, verification
from plan_llama.engines.bounded import Ended
from plan_llama.engines.command_settings import to_settings
from plan_llama.engines.commandline import ParsedCommand, parse
from plan_llama.engines.dry_run import RealBytes
from plan_llama.engines.flags import FlagTable
from plan_llama.engines.older_builds import InstalledHelp
from plan_llama.engines.overrides import device_names
from plan_llama.engines.verification import Line
from plan_llama.hardware.engines import parse_help
from plan_llama.hardware.types import Backend, Machine
from plan_llama.memory.compute import is_described
from plan_llama.memory.estimate import buffers
from plan_llama.memory.footprint import Beyond, Footprint, device_memory, footprint
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import Buffers, Settings

# Devices of ggml's backends by the start of their names. An RPC server may have any of them behind it.
_BACKENDS: Mapping[str, Backend] = {
    "CUDA": "cuda",
    "ROCm": "rocm",
    "Vulkan": "vulkan",
    "MTL": "metal",
    "SYCL": "sycl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A command, what it means for a model on a machine, and what is kept free there."""

    table: ModelTable
    machine: Machine
    beyond: Beyond
    parsed: ParsedCommand
    settings: Settings
    engine_build: int | None  # of the programs that are run
    env: Mapping[str, str]
    margin_bytes: int | None = None
    allow_paging: bool = False


class DryRun:
    """A run of llama-fit-params."""

    name = dry_run.PROGRAM
    leaves_out: frozenset[str] = frozenset()  # arguments, beside those that it does not know
    repacks = True  # where the engine does
    header_only = False

    def __init__(self, subject: Subject, program: str, rpc: str | None, timeout_s: float) -> None:
        self.subject, self.program, self.timeout_s = subject, program, timeout_s
        self.remote = ("--rpc", rpc) if rpc else ()
        self.env = environment(subject.env)
        self.unchecked: list[str] = []
        self.notes: list[str] = []
        listed = self._ask(program, *self.remote, "--list-devices")
        self.devices = dry_run.listed_devices(listed.out)
        if listed.code != 0:
            self.notes.append(f"{self.name} --list-devices: {listed.how}; {listed.last_words}")
        self.known = InstalledHelp(parse_help(self._ask(program, "--help").out))
        self.machine = subject.machine
        self.names: tuple[str, ...] | None = self._stand_ins()
        host_only = self.names is None
        self.translated = dry_run.translate(
            subject.parsed,
            self.known,
            host_only=host_only,
            repack=self.repacks and not (host_only or self.remote_devices),
            without=self.leaves_out,
        )
        self.unchecked += [f"{item}: {self.name} does not take it" for item in self.translated.other_memory]

    def _ask(self, *argv: str) -> Ended:
        return bounded.run(argv, env=self.env, timeout_s=self.timeout_s)

    def _stand_ins(self) -> tuple[str, ...] | None:
        """The engine's names of the machine's GPUs, in their order; None where it has too few: then the host alone."""
        gpus = self.subject.machine.gpus
        if len(self.devices) < len(gpus):
            have = ", ".join(device.name for device in self.devices) or "none"
            self.unchecked.append(
                f"what is placed on GPUs: the plan has {len(gpus)}, this engine has {have} (--rpc names remote ones); "
                "the whole model was placed on the host instead"
            )
            self.machine = replace(self.machine, gpus=())
            return None
        used = self.devices[: len(gpus)]
        cards = []
        for gpu, device in zip(gpus, used, strict=True):
            prefix = device.name.rstrip("0123456789")
            cards.append(
                replace(
                    gpu,
                    backend=_BACKENDS.get(prefix, gpu.backend),
                    total_bytes=device.total_bytes,
                    free_bytes=device.free_bytes,
                )
            )
            if prefix not in _BACKENDS:
                self.notes.append(
                    f"{device.name} is taken for {gpu.name}: what is behind it is not known here"
                )
            elif _BACKENDS[prefix] != gpu.backend:
                self.notes.append(
                    f"{device.name} stands for {gpu.name}, with another backend ({gpu.backend})"
                )
        self.machine = replace(self.machine, gpus=tuple(cards))
        return tuple(device.name for device in used)

    @property
    def remote_devices(self) -> bool:
        """Whether a device is used that is not a local card. Beside such a one, unlike beside a local card, the engine
        repacks the host's weights, and computes with them there (make_cpu_buft_list, src/llama-model.cpp, b11434).
        """
        return any(name.rstrip("0123456789") not in _BACKENDS for name in self.names or ())

    def _in_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """The arguments for the program with these names for the machine's GPUs."""
        own = device_names(self.subject.machine.gpus)
        return self.translated.words(dict(zip(own, names, strict=False)))

    def run(self, path: str) -> Ended:
        """Runs it on this file, which holds the model or (`header_only`) its header alone."""
        return self._ask(*self.argv(path), "-fitp", "on", "-lv", "4")

    def argv(self, path: str) -> tuple[str, ...]:
        """The command, as far as it is the plan's. Of more devices than the plan has only the first ones are used."""
        words = self._in_names(self.names or ())
        if len(self.devices) > len(self.names or ()) and not {"-dev", "--device"} & set(words):
            words += ("--device", ",".join(self.names or ()) or "none")
        return (self.program, "-m", path, *self.remote, *words)

    def ask_parser(self, server: Path, path: str) -> Ended:
        """Whether llama-server's own parser takes the command: with --help behind it, it ends after reading it."""
        names = dict(zip(device_names(self.subject.machine.gpus), self.names or (), strict=False))
        words = dry_run.for_parser(self.subject.parsed, names, host_only=self.names is None)
        return self._ask(str(server), "-m", path, *self.remote, *words, "--help")

    def real(self, ended: Ended) -> dict[str, RealBytes]:
        """What the engine printed, by device; copies beside the host's own buffers are counted to the host."""
        names = [device.name for device in self.devices]
        found = dry_run.printed(ended.out, names)
        if verification.HOST in found:
            for other in dry_run.other_buffers(f"{ended.out}\n{ended.err}", names).values():
                found[verification.HOST] += other
        return found

    @cached_property
    def settings(self) -> Settings:
        """What the same arguments mean for the program that is run, on the devices that it uses."""
        words = self._in_names(device_names(self.machine.gpus))
        parsed = parse((self.name, *words), table=FlagTable.load(self.subject.parsed.build or None))
        settings = to_settings(parsed, model=self.subject.table.spec, machine=self.machine).settings
        return replace(settings, older=memory_rules.older(self.subject.engine_build))

    @cached_property
    def reserved(self) -> Buffers:
        """The prediction for the program that is run."""
        return buffers(self.subject.table, self.settings, device_memory(self.machine), self.machine.cpu.isa)

    @property
    def predicted(self) -> Buffers:
        """The same, as the program says it."""
        return self.reserved

    @cached_property
    def planned(self) -> Buffers:
        """What the command itself is predicted to use."""
        subject = self.subject
        return buffers(
            subject.table, subject.settings, device_memory(subject.machine), subject.machine.cpu.isa
        )

    def lines(self, real: Mapping[str, RealBytes]) -> tuple[Line, ...]:
        """Predicted beside real. Where the machine's GPUs could not be used, theirs are not checked."""
        described = is_described(self.subject.table.spec)
        return verification.compare(self.predicted, self.planned, real, self.names, upper_bound=not described)

    def real_footprint(self, real: Mapping[str, RealBytes]) -> Footprint:
        """What the command uses with the real numbers in the place of the predicted ones."""
        subject, known = self.subject, self.planned
        if self.names is not None:
            known = verification.corrected(known, self.predicted, real, self.names)
        return footprint(
            subject.table,
            subject.settings,
            subject.machine,
            subject.beyond,
            margin_bytes=subject.margin_bytes,
            known=known,
        )


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would change the command (LLAMA_ARG_...), and with the command's own.

    ggml starts a debugger for a backtrace when it aborts, unless it is told not to (ggml/src/ggml.c, b11434).
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    return {**own, **more, "GGML_NO_BACKTRACE": "1"}
