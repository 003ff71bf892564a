"""From a server that runs to a plan: its file's header, its own command, and its memory beside the prediction.

The file is found as the process sees it, through /proc/PID/root and /proc/PID/cwd (proc(5)), which holds in containers
too; nothing is fetched and nothing is run.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from plan_llama.cli import check_command, checked_model
from plan_llama.cli.correct_command import Checked, corrected_command
from plan_llama.cli.doctor_plan import TO_PLAN_FOR, Compared, Planned, difference
from plan_llama.cli.options import ModelOptions, WishOptions
from plan_llama.cli.wishes import wishes
from plan_llama.doctor.redact import redacted, redacted_words
from plan_llama.doctor.report import Found
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from plan_llama.errors import InputError, PlanLlamaError
from plan_llama.hardware.processes import Watch
from plan_llama.hardware.sysfs import text, under
from plan_llama.hardware.types import Machine
from plan_llama.models import locate
from plan_llama.units import gib

_ROOT = Path("/")
_MAPS = "mmap"  # load modes that leave weights in the mapped file have it in their names
_MODEL = ("-m", "--model")
_PROJECTOR = ("-mm", "--mmproj")
_REPOSITORY = ("-hf", "-hfr", "--hf-repo")
_VARIABLES = {"LLAMA_ARG_MODEL": _MODEL, "LLAMA_ARG_HF_REPO": _REPOSITORY}
_WEIGHTS = re.compile(r"\.gguf$|/blobs/sha256-[0-9a-f]{64}$")
# Where a runtime lies and which one an image was made with is no part of a command (CUDA_HOME, CUDA_VERSION).
_PLACES = re.compile(r"(?:CUDA|HIP|ROCM|NVIDIA)_(?:HOME|PATH|ROOT|VERSION)$")
_PROGRAM_BYTES = 768 << 20  # what the program's own libraries and tables may take beside what is predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A process that runs a model. `file` is its file as it can be read from here; `ended`: it holds nothing now."""

    pid: int
    words: tuple[str, ...]
    environment: Mapping[str, str]
    watch: Watch
    file: Path | None = None
    projector: Path | None = None
    ended: bool = False


def watched(argv: Sequence[str], watch: Watch) -> Running:
    """A command that was run and watched from this process's folder."""
    names = ("LLAMA_", "GGML_", "CUDA_", "HIP_", "ROCR_")
    environment = {name: value for name, value in os.environ.items() if name.startswith(names)}
    return replace(running(os.getpid(), argv, environment, watch), pid=watch.pid, ended=True)


def running(
    pid: int, words: Sequence[str], environment: Mapping[str, str], watch: Watch, *, sysroot: Path = _ROOT
) -> Running:
    """What the process runs: the file that it names, else the largest one that it has open, else its cached one."""
    seen = _Seen(pid, sysroot)
    spoken = {name: value for name, value in pairwise(words) if name.startswith("-")}
    for variable, names in _VARIABLES.items():
        if variable in environment and not any(name in spoken for name in names):
            spoken[names[0]] = environment[variable]

    def named(names: Sequence[str]) -> str | None:
        return next((spoken[name] for name in names if name in spoken), None)

    model, projector, repository = named(_MODEL), named(_PROJECTOR), named(_REPOSITORY)
    file = seen.file(model) if model else None
    return Running(
        pid=pid,
        words=tuple(words),
        environment={name: value for name, value in environment.items() if not _PLACES.match(name)},
        watch=watch,
        file=file or seen.opened() or (_cached(repository) if repository else None),
        projector=seen.file(projector) if projector else None,
    )


class _Seen:
    """Files as a process sees them."""

    def __init__(self, pid: int, sysroot: Path) -> None:
        self._folder = under(sysroot, f"/proc/{pid}")
        self._sysroot = sysroot

    def file(self, name: str) -> Path | None:
        """A path of its command line."""
        path = name
        if not name.startswith("/"):
            try:
                path = str((self._folder / "cwd").readlink() / name)
            except OSError:
                return None
        inside = under(self._folder / "root", path)
        return next((found for found in (inside, under(self._sysroot, path)) if _readable(found)), None)

    def opened(self) -> Path | None:
        """The file of weights of which it has mapped the most, else the largest one that it holds open."""
        mapped: dict[str, int] = {}
        for line in (text(self._folder / "maps", 16 << 20) or "").splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and _WEIGHTS.search(parts[5]) and not _beside(parts[5]):
                first, _, last = parts[0].partition("-")
                mapped[parts[5]] = mapped.get(parts[5], 0) + int(last, 16) - int(first, 16)
        names = sorted(mapped, key=lambda name: -mapped[name]) or sorted(self._held(), key=self._size)
        return next((found for name in names if (found := self.file(name)) is not None), None)

    def _held(self) -> Iterator[str]:
        try:
            entries = list((self._folder / "fd").iterdir())
        except OSError:
            return
        for entry in entries:
            try:
                target = str(entry.readlink())
            except OSError:
                continue
            if _WEIGHTS.search(target) and not _beside(target):
                yield target

    def _size(self, name: str) -> int:
        found = self.file(name)
        return 0 if found is None else -found.stat().st_size


def _beside(name: str) -> bool:
    return fnmatch.fnmatch(name.rpartition("/")[2].lower(), "mmproj*")


def _readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False


def _cached(repository: str) -> Path | None:
    """The file of OWNER/REPO[:QUANT] in a cache of this machine."""
    repo, _, quant = repository.partition(":")
    return locate.find(repo, (), include=f"*{quant}*.gguf") if repo.count("/") == 1 else None


def plan_of_running(
    server: Running,
    machine: Machine,
    found: Sequence[Found],
    *,
    build: int | None,
    model: str | None,
    quant: str | None,
) -> Planned:
    """The command that fits in its place where its trouble is one of memory, and its memory beside the prediction."""
    try:
        return _plan(server, machine, found, build, model, quant)
    except PlanLlamaError as error:
        if model is not None:
            raise
        return Planned(why_not=redacted(f"No command is planned: {error.line()}."))


def _plan(
    server: Running,
    machine: Machine,
    found: Sequence[Found],
    build: int | None,
    model: str | None,
    quant: str | None,
) -> Planned:
    try:
        parsed = parse(server.words, table=FlagTable.load(build), env=server.environment)
    except InputError:  # no program of llama.cpp
        return Planned()
    name = model or (str(server.file) if server.file is not None else None)
    spec, about = checked_model.model_of(parsed, ModelOptions(model=name, quant=quant))
    if spec is None:
        return Planned(
            why_not=redacted(f"No command is planned: {about[-1].text}. --model NAME says which model it is.")
        )
    projector = ModelOptions(mmproj=str(server.projector)) if server.projector is not None else ModelOptions()
    spec, _ = checked_model.with_projector(parsed, spec, projector)
    wanted = wishes(WishOptions())
    checked, _ = check_command.judge(parsed, spec, without(server, machine), wanted)
    compared = tuple(_compared(server, machine, checked))
    findings = [difference(compared)] if any(item.differs for item in compared) else []
    if not any(item.severity != "note" and item.id in TO_PLAN_FOR for item in found):
        return Planned(compared=compared, findings=findings)
    about_memory = _about(checked)
    if checked.verdict in (
        "fits",
        "tight",
    ):  # the solver's own is asked for all the same: threads, another placement
        about_memory += (
            "; by that it has room: what else runs there is the reason, or what the command says of threads"
        )
        checked = replace(checked, verdict="invalid")
    # Where nothing fits as it was asked for: with what context there is room for, and then without a cache of prompts.
    less = replace(checked, reading=replace(checked.reading, user_set=checked.reading.user_set - {"ctx"}))
    bare = wanted.pinned(cache_ram="0")
    command, said = corrected_command(parsed, checked, wanted, build, ())
    for what, wish in (("less context", wanted), ("less context and no cache of prompts", bare)):
        if command is None:
            command, _ = corrected_command(parsed, less, wish, build, ())
            about_memory += f"; what fits has {what}" if command is not None else ""
    if command is None:
        return Planned(why_not=redacted(said[-1].text) + ".", compared=compared, findings=findings)
    clean = replace(
        command,
        argv=tuple(redacted_words(command.argv)),
        env={
            key: redacted_words([f"{key}={value}"])[0].partition("=")[2] for key, value in command.env.items()
        },
    )
    return Planned(command=clean, about=about_memory, compared=compared, findings=findings)


def _about(checked: Checked) -> str:
    use = checked.candidate.footprint
    cards = [f"{item.name} {gib(item.total_bytes)} of {gib(item.free_bytes)}" for item in use.devices]
    ram = f"RAM {gib(use.host.total_bytes)} of {gib(use.host.available_bytes)}"
    return f"predicted for the command that runs: {', '.join([*cards, ram])} ({checked.verdict})"


def without(server: Running, machine: Machine) -> Machine:
    """The machine as it would be without the server, within the limits that bind the server."""
    limits = [item.limit_bytes for item in server.watch.groups if item.limit_bytes is not None]
    limits += [server.watch.address[0]] if server.watch.address is not None else []
    if server.ended:  # the machine was looked at before it began
        ram = machine.ram
        return replace(machine, ram=replace(ram, available_bytes=min([ram.available_bytes, *limits])))
    pids = set(server.watch.latest)
    gpus = tuple(
        replace(gpu, free_bytes=min(gpu.total_bytes, gpu.free_bytes + _held_by(pids, machine, place)))
        for place, gpu in enumerate(machine.gpus)
    )
    ram = machine.ram
    available = min(ram.total_bytes, ram.available_bytes + server.watch.private_bytes)
    return replace(machine, gpus=gpus, ram=replace(ram, available_bytes=min([available, *limits])))


def _held_by(pids: set[int], machine: Machine, place: int) -> int:
    return sum(item.used_bytes or 0 for item in machine.gpus[place].processes if item.pid in pids)


def _compared(server: Running, machine: Machine, checked: Checked) -> Iterator[Compared]:
    """What its processes take of each card and of RAM; pages that were never touched are in no process's memory.

    Pages of a mapped file are left out on both sides: while it loads all are in the process, those of weights that
    went to a card too, and the kernel takes them back when it likes.
    """
    use = checked.candidate.footprint
    pids = set(server.watch.latest)
    for place, predicted in enumerate(use.devices):
        measured = _held_by(pids, machine, place)
        if measured:
            yield Compared(
                device=f"gpu{place}",
                kind="all",
                measured_bytes=measured,
                predicted_bytes=predicted.total_bytes,
            )
    if server.watch.anonymous_peak_bytes:
        in_file = use.host.weights_bytes - use.host.repacked_bytes
        mapped = in_file if _MAPS in checked.reading.settings.load_mode else 0
        yield Compared(
            device="RAM",
            kind="anonymous",
            measured_bytes=server.watch.anonymous_peak_bytes,
            predicted_bytes=use.host.total_bytes - use.host.cache_bytes - mapped,
            room_bytes=_PROGRAM_BYTES + use.host.cache_bytes,  # the cache of prompts grows as it is used
        )
