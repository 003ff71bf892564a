"""Start llama-server on a plan, read from its log what it reserves, and end it: where there is no llama-fit-params.

Weights are mapped, and nothing is warmed up or repacked. The mapping is still read whole (MAP_POPULATE, llama_mmap in
src/llama-mmap.cpp, b11434), also where a file is a header over a hole, and caches are cleared when they are made: how
much memory that takes is known before, and a server that would take more than may be taken is not started.
"""

from __future__ import annotations

import socket
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from plan_llama.doctor.evidence import Buffer, is_host
from plan_llama.doctor.reader import Book, LogReader
from plan_llama.engines import bounded, verification
from plan_llama.engines.bounded import Ended, Watch
from plan_llama.engines.dry_run import RealBytes
from plan_llama.engines.verify_run import DryRun, Subject
from plan_llama.memory import weights
from plan_llama.memory.footprint import device_memory
from plan_llama.memory.table import ModelTable
from plan_llama.memory.types import HOST, Buffers
from plan_llama.models.types import ModelSpec
from plan_llama.units import GIB, MIB, gib

LOOPBACK = "127.0.0.1"
_OWN_BYTES = 512 * MIB  # of the program itself, with a large vocabulary
_SPARE_BYTES = 2 * GIB  # of what is available, or a tenth of it, is left to others
_ROUNDED_BYTES = MIB // 200 + 1  # a buffer is printed to 0.01 MiB
_ALIGNMENT = 32  # of tensors in a file
_QUIET_S = 0.5
_MAPPING = ("MTL", "Metal")  # devices whose weights are a mapping of the file too
# Replaced by our own, reaching out, or loading more than the model.
_NOT_STARTED = frozenset(
    (
        "--host",
        "--port",
        "-lm",
        "--mmap",
        "--no-mmap",
        "--mlock",
        "-dio",
        "--warmup",
        "--no-warmup",
        "-mm",
        "--tools",
    )
) | {"--tools-runtime", "--mcp-servers-config", "--mcp-servers-json", "--slot-save-path", "--models-dir"}
_DRAFTS = frozenset(("-md", "-hfd", "--spec-type"))
_NOT_STARTED |= {
    "--models-preset",
    "--media-path",
    "--path",
    "--ssl-key-file",
    "--ssl-cert-file",
    "--reuse-port",
}


class ServerRun(DryRun):
    """A run of llama-server, until it serves."""

    name = "llama-server"
    repacks = False

    def __init__(
        self, subject: Subject, program: str, rpc: str | None, timeout_s: float, available_bytes: int
    ) -> None:
        """`available_bytes` of this machine's memory."""
        self.leaves_out = _NOT_STARTED
        drafts = subject.table.draft
        if subject.settings.draft is not None and not (drafts and _is_here(drafts.spec)):
            self.leaves_out |= _DRAFTS
        super().__init__(subject, program, rpc, timeout_s)
        self.most_bytes = available_bytes - max(_SPARE_BYTES, available_bytes // 10)
        if self.leaves_out & _DRAFTS:
            self.unchecked.append("the draft model: its file is not here")
        if self.planned.repacked_bytes:
            self.unchecked.append("weights in formats of the CPU: -nr keeps them as they are in the file")

    def run(self, path: str) -> Ended:
        """Starts it, unless it would take more memory than there is, and ends it once it serves."""
        argv, need = self._started(path), self._need_bytes()
        if need > self.most_bytes:
            may = f"of which it may take {gib(max(0, self.most_bytes))}"
            trouble = f"it would take {gib(need)} of this machine's memory, {may}"
            if self.header_only:
                trouble += "; the stand-in for the model is read whole"
            return Ended(argv=argv, code=None, seconds=0.0, trouble=trouble)
        watch = Watch(enough=_Until().served, most_bytes=self.most_bytes)
        return bounded.run(argv, env=self.env, timeout_s=self.timeout_s, watch=watch)

    def _started(self, path: str) -> tuple[str, ...]:
        """The command, with what makes it safe to start in the end, where it counts."""
        words = self.argv(path)
        if self.names is None:
            words += ("-ngl", "0")
        own = (("--no-warmup", ""), ("-lm", "mmap"), ("-fit", "off"), ("-lv", "4"))
        for flag, value in own:
            if self.known.has(flag):
                words += (flag, value) if value else (flag,)
        return (*words, "--host", LOOPBACK, "--port", str(_free_port()))

    def _need_bytes(self) -> int:
        """Of this machine's memory: caches and buffers on the host, the pages of a file that stands in for the model,
        and what a device takes behind an RPC server that runs here too.
        """
        made = self.reserved
        need = _OWN_BYTES + made.host.context_bytes + made.host.compute_bytes
        if self.header_only:
            need += sum(tensor.nbytes for tensor in self.subject.table.spec.tensors)
        if self.remote_devices and any(LOOPBACK in word or "localhost" in word for word in self.remote):
            need += sum(part.total_bytes for part in made.devices)
        return need

    def real(self, ended: Ended) -> dict[str, RealBytes]:
        """The buffers in its log, by device; all of the host's together."""
        found: dict[str, list[Buffer]] = defaultdict(list)
        for item in _buffers(ended.out):
            found[self._named(item)].append(item)
        real = {device: _sums(items) for device, items in found.items()}
        for device, sums in real.items():
            mapped = device.startswith(_MAPPING) or (
                device == verification.HOST and self._mapped_bytes is None
            )
            if mapped:
                real[device] = replace(sums, model_bytes=None)
        if any(sums.model_bytes is None for sums in real.values()):
            self.unchecked.append(
                "weights that are mapped: the log has the whole stretch of a file from the first of them to the last"
            )
        return real

    def _named(self, item: Buffer) -> str:
        """The device by the engine's own name: a buffer behind an RPC server is called by its number there."""
        if is_host(item.device):
            return verification.HOST
        there = [device.name for device in self.devices if device.description == item.endpoint]
        number = item.device.removeprefix("RPC")
        known = bool(item.endpoint) and number.isdigit() and int(number) < len(there)
        return there[int(number)] if known else item.device

    @property
    def predicted(self) -> Buffers:
        """As it is logged: weights on the host are one mapping of the file, from the first of them to the last."""
        made = self.reserved
        if self._mapped_bytes is None:
            return made
        return replace(made, host=replace(made.host, weights_bytes=self._mapped_bytes))

    @cached_property
    def _mapped_bytes(self) -> int | None:
        """None where it is not known: the model is in several files, or a part of it is mapped by itself."""
        table, settings = self.subject.table, self.settings
        in_one = self.header_only or len(table.spec.files) == 1
        if not in_one or table.lazy_bytes(settings.lazy_mode):
            return None
        free = [device.free_bytes for device in device_memory(self.machine)]
        found = mapped_bytes(table, weights.place(table, settings, free))
        if table.draft is not None and settings.draft is not None:
            if len(table.draft.spec.files) > 1 or table.draft.lazy_bytes(settings.lazy_mode):
                return None
            found += mapped_bytes(table.draft, weights.place(table.draft, settings.draft, free))
        return found


def _is_here(spec: ModelSpec) -> bool:
    return spec.present and spec.data_note is None


def mapped_bytes(table: ModelTable, placement: weights.Placement) -> int:
    """The stretch of a file from the first to the last tensor that stays on the host.

    Source: llama_model_loader::get_mapping_range, src/llama-model-loader.cpp, b11434.
    """
    first = last = offset = 0
    for tensor, device in zip(table.spec.tensors, placement.device_of, strict=True):
        if device == HOST:
            first = first if last else offset
            last = offset + tensor.nbytes
        offset = -(-(offset + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT
    return last - first


def _sums(items: Sequence[Buffer]) -> RealBytes:
    kinds = Counter(item.kind for item in items)
    sizes: Counter[str] = Counter()
    for item in items:
        sizes[item.kind] += item.size_bytes
    off = max(kinds.values()) * _ROUNDED_BYTES
    return RealBytes(sizes["model"], sizes["context"], sizes["compute"], above_bytes=off, below_bytes=off)


def _reader() -> LogReader:
    made = LogReader(Book(()))
    made.feed([], "llama-server")
    return made


def _buffers(log: str) -> Sequence[Buffer]:
    reader = _reader()
    reader.feed(log.encode().split(b"\n"), "llama-server")
    return reader.finish().starts[-1].buffers


class _Until:
    """Reads what a server prints, in whole lines, until it serves and is quiet."""

    def __init__(self) -> None:
        self._reader, self._rest, self._since = _reader(), b"", 0.0

    def served(self, fresh: bytes) -> bool:
        """Whether that is so."""
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        if lines:
            self._reader.feed(lines, "llama-server")
            self._since = time.monotonic()
        return self._reader.served and time.monotonic() - self._since > _QUIET_S


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
