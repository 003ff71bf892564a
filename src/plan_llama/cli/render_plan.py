"""A plan or a check as text for a person: warnings first, then memory, speed, the ladder and the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from plan_llama.cli.screen import Screen
from plan_llama.engines import older_builds
from plan_llama.engines.launch import FurtherCommand, LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.memory.footprint import Footprint, Pool
from plan_llama.memory.table import ModelTable
from plan_llama.models.types import ModelSpec
from plan_llama.solver.types import Alternative, Candidate, Plan, Rung
from plan_llama.speed.types import Load, Request, SpeedEstimate
from plan_llama.units import gib, publisher_gb, rate, seconds, tokens

_VERDICT_STYLE = {
    "fits": "good",
    "tight": "warn",
    "pages-from-disk": "bad",
    "does-not-fit": "bad",
    "invalid": "bad",
}
_MARK = {"error": "bad", "warning": "warn", "note": "dim"}


def title(screen: Screen, spec: ModelSpec, machine: Machine) -> Iterator[str]:
    """What is planned for what."""
    seen = f", {publisher_gb(spec.projector.file_bytes)} projector" if spec.projector else ""
    yield (
        screen.style(f"{spec.name} {spec.quant}", "bold") + f"  ({publisher_gb(spec.file_bytes)} file{seen})"
    )
    where = "a described machine, not this one" if machine.simulated else "this machine"
    yield from screen.wrap(f"on {_machine(machine)}  ({where})", indent=0)


def _machine(machine: Machine) -> str:
    groups: dict[tuple[str, int], int] = {}
    for gpu in machine.gpus:
        key = (gpu.name, gpu.total_bytes)
        groups[key] = groups.get(key, 0) + 1
    cards = [f"{count} × {name}" if count > 1 else name for (name, _), count in groups.items()]
    pool = "shared memory" if machine.unified else "RAM"
    cores = f"{machine.cpu.physical_cores} core{'s' if machine.cpu.physical_cores != 1 else ''}"
    return ", ".join(
        [
            *(cards or ["no GPU"]),
            f"{gib(machine.ram.total_bytes)} {pool}",
            f"{machine.cpu.name or 'CPU'} with {cores}",
        ]
    )


def findings(screen: Screen, items: Iterable[Finding], *, notes: bool) -> Iterator[str]:
    """Warnings and errors, or the notes."""
    chosen = [item for item in items if (item.severity == "note") == notes]
    for item in chosen:
        mark = {"error": "✗", "warning": "!", "note": "·"}[item.severity]
        yield from screen.wrap(f"{screen.glyph(mark)} {item.text}", indent=2, style=_MARK[item.severity])
        if item.fix:
            yield from screen.wrap(f"{screen.glyph('→')} {item.fix}", indent=4)


def headline(screen: Screen, table: ModelTable, chosen: Candidate, verdict: str) -> str:
    """The verdict and the placement in one line."""
    settings = chosen.settings
    per_slot = settings.slot_limit or settings.context_per_slot
    shared = settings.kv_unified and settings.slot_limit is None
    slots = ""
    if settings.parallel > 1:
        slots = (
            f" shared by {settings.parallel} slots" if shared else f" for each of {settings.parallel} slots"
        )
    plain = f"{verdict.upper()}  {_placement(table, chosen)}; {tokens(per_slot)} tokens of context{slots}"
    styled = screen.style(verdict.upper(), _VERDICT_STYLE[verdict])
    return "\n".join(screen.wrap(plain, indent=0)).replace(verdict.upper(), styled, 1)


def _placement(table: ModelTable, chosen: Candidate) -> str:
    """What is where, each layer counted once: experts are told of the layers whose rest is on a GPU."""
    gpus = "GPUs" if len(chosen.footprint.devices) > 1 else "GPU"
    on_gpu = chosen.gpu_block_layers
    if on_gpu == 0:
        return "all on the CPU"
    on_cpu = table.layers - on_gpu  # llama.cpp fills the GPUs from the last layer on
    experts = sum(1 for size in table.expert_bytes[on_cpu : table.layers] if size)
    host = min(experts, chosen.cpu_moe_layers - sum(1 for size in table.expert_bytes[:on_cpu] if size))
    where = (
        f"all {on_gpu} layers on the {gpus}"
        if not on_cpu
        else f"{on_gpu} of {table.layers} layers on the {gpus}"
    )
    kept = []  # of these layers on the CPU
    if host > 0:
        whole = "all experts" if not on_cpu else "their experts"
        of = f"experts of {host} of {experts} layers" if not on_cpu else f"experts of {host} of them"
        parts = f" (of {chosen.cpu_moe_parts} layers only a part)" if chosen.cpu_moe_parts > 1 else ""
        kept.append((whole if host == experts else of) + parts)
    if chosen.cpu_ffn_layers:
        kept.append(f"feed-forward weights of {chosen.cpu_ffn_layers}")
    if chosen.cpu_weight_layers:
        kept.append(f"all weights of {chosen.cpu_weight_layers}")
    if kept:
        there = " and ".join(kept) + " on the CPU"
        where += f", {there}" if not on_cpu else f" ({there})"
    return where + (f", the other {on_cpu} on the CPU" if on_cpu else "")


def memory(screen: Screen, used: Footprint) -> Iterator[str]:
    """A bar per pool, and under it what takes the memory."""
    names = [pool.name for pool in used.pools]
    width = max(len(name) for name in names)
    ram, cards = used.pools[0], used.pools[1:]
    unified = not cards and bool(used.devices)
    for device, pool in zip(used.devices, cards, strict=False):
        yield _bar(screen, pool, width, device.name)
        line = [
            f"weights {gib(device.weights_bytes)}",
            f"context {gib(device.context_bytes)}",
            f"compute {gib(device.compute_bytes)}",
            *([f"projector {gib(device.projector_bytes)}"] if device.projector_bytes else []),
            *([f"fused kernels {gib(device.fused_bytes)}"] if device.fused_bytes else []),
            f"driver {gib(device.driver_bytes)} (assumed)",
            f"peak {gib(device.peak_bytes)}",
        ]
        if device.total_bytes == device.driver_bytes:
            line = [f"nothing is placed here; driver {gib(device.driver_bytes)} (assumed)"]
        yield from _parts(screen, line, width + 4)
    yield _bar(screen, ram, width, "shared by CPU and GPU" if unified else "")
    host = used.host
    resident = host.weights_bytes - host.lazy_bytes  # what is read row by row is no part of the pool's sum
    parts = [
        ("weights", resident),
        ("context", host.context_bytes),
        ("compute", host.compute_bytes),
        ("projector", host.projector_bytes),
    ]
    if unified:
        parts = [
            ("weights", resident + sum(d.weights_bytes for d in used.devices)),
            ("context", host.context_bytes + sum(d.context_bytes for d in used.devices)),
            ("compute", host.compute_bytes + sum(d.compute_bytes for d in used.devices)),
            ("projector", host.projector_bytes + sum(d.projector_bytes for d in used.devices)),
            ("driver", sum(d.driver_bytes for d in used.devices)),
        ]
    kept = "prompt cache" if host.checkpoint_bytes == 0 else "prompt cache and checkpoints"
    parts.append((f"{kept} up to", host.cache_bytes))
    texts = [f"{name} {gib(size)}" for name, size in parts if size]
    if host.repacked_bytes:
        texts[0] += f", {gib(host.repacked_bytes)} of it repacked for the CPU"
    yield from _parts(screen, texts, width + 4)


def _parts(screen: Screen, parts: Sequence[str], indent: int) -> Iterator[str]:
    """What a pool holds, broken between its parts only."""
    line = parts[0]
    for part in parts[1:]:
        if indent + len(line) + 3 + len(part) > screen.width:
            yield " " * indent + screen.style(line, "dim")
            line = part
        else:
            line += f" · {part}"
    yield " " * indent + screen.style(line, "dim")


def _bar(screen: Screen, pool: Pool, width: int, name: str) -> str:
    left = pool.available_bytes - pool.used_bytes
    state = f"{gib(pool.used_bytes)} of {gib(pool.available_bytes)}, "
    state += f"{gib(left)} free" if left >= 0 else f"{gib(-left)} too little"
    state += f", margin {gib(pool.margin_bytes)}" if pool.margin_bytes else ""
    cells = max(8, min(24, screen.width - width - len(state) - 6))
    total = max(pool.total_bytes, pool.used_bytes, 1)
    before = pool.total_bytes - pool.available_bytes
    taken = round(before / pool.total_bytes * cells) if pool.total_bytes else 0
    filled = min(cells, round(pool.used_bytes / total * cells))
    taken = min(taken, cells - filled)
    empty = cells - filled - taken
    over = pool.used_bytes > pool.available_bytes
    style = "bad" if over else "warn" if pool.spare_bytes < 0 else "good"
    bar = (
        screen.style(screen.glyph("█") * filled, style)
        + screen.glyph("▒") * taken
        + screen.glyph("░") * empty
    )
    line = f"  {pool.name:<{width}}  {bar}  {state}"
    room = screen.width - len(line) + len(bar) - cells - 2
    if len(name) > room:
        name = name[: room - 1] + screen.glyph("…") if room > 8 else ""
    return line + (f"  {name}" if name else "")


def speed(screen: Screen, item: SpeedEstimate, request: Request) -> Iterator[str]:
    """What a person feels."""
    decode, prefill = item.decode_tok_s, item.prefill_tok_s
    load = item.load
    if load is not None and load.users > 1:
        yield screen.style("  one request alone:", "dim")
    yield (
        f"  decode  {screen.style(rate(decode.expected), 'bold')} tok/s ({rate(decode.low)} to {rate(decode.high)})"
        f"    prefill  {screen.style(rate(prefill.expected), 'bold')} tok/s ({rate(prefill.low)} to "
        f"{rate(prefill.high)})"
    )
    loading = f", loading {seconds(item.load_s)}" if item.load_s is not None else ""
    yield from screen.wrap(
        f"first token after {seconds(item.ttft_s)} (a new prompt of {request.prompt_tokens:,} tokens) or "
        f"{seconds(item.follow_up_ttft_s)} (a follow-up); {request.output_tokens:,} tokens after "
        f"{seconds(item.request_s)}{loading}",
        indent=2,
    )
    yield from screen.wrap(
        f"bound by {item.bound_by} ({item.bound_share * 100:.0f} % of a token); what would move it: {item.moved_by}",
        indent=2,
    )
    if load is not None and load.users > 1:
        yield from _load(screen, load, request)


def _load(screen: Screen, load: Load, request: Request) -> Iterator[str]:
    """What each of several users gets."""
    where = f"on {load.slots} slot{'s' if load.slots > 1 else ''}" if load.slots < load.users else "at once"
    yield screen.style(f"  {load.users} users {where}, all of them busy:", "dim")
    yield from screen.wrap(
        f"together  {rate(load.aggregate_tok_s)} tok/s, each {rate(load.decode_tok_s)} while it writes; prompts "
        f"{rate(load.prompt_tok_s)} tok/s; {load.requests_per_s * 3600:,.0f} answers an hour",
        indent=2,
    )
    wait = f", {seconds(load.slot_wait_s)} of it in line for a slot" if load.slot_wait_s else ""
    first, again = seconds(load.ttft_s), seconds(load.follow_up_ttft_s)
    if first != again:
        first += f" (a new prompt) or {again} (a follow-up)"
    yield from screen.wrap(
        f"first token after {first}{wait}; {request.output_tokens:,} tokens after {seconds(load.request_s)}; if all "
        f"send a new prompt at once, the last one's first token comes after {seconds(load.burst_ttft_s)}",
        indent=2,
    )


def ladder(screen: Screen, rungs: Sequence[Rung], chosen: Candidate, blocks: int) -> Iterator[str]:
    """Context against micro-batch and speed."""
    found = [rung.candidate for rung in rungs if rung.candidate and chosen.footprint.devices]
    experts = any(c.cpu_moe_layers for c in found)
    layers = not experts and any(_on_cpu(c, blocks) for c in found)
    heading = "    context  verdict          ubatch   prefill    decode"
    if experts:
        long = "   layers with experts on the CPU"
        heading += long if len(heading + long) <= screen.width else "   CPU experts (layers)"
    elif layers:
        heading += "   layers on the CPU"
    yield screen.style(heading, "dim")
    for rung in rungs:
        item = rung.candidate
        if item is None:
            yield f"  {tokens(rung.context):>9}  {screen.style('does-not-fit', 'bad')}     {rung.reason}"
            continue
        verdict = item.footprint.verdict
        mark = "  " + screen.glyph("←") + " this plan" if item is chosen else ""
        line = f"  {tokens(rung.context):>9}  {screen.style(f'{verdict:<15}', _VERDICT_STYLE[verdict])}  "
        if verdict == "does-not-fit":
            yield f"{line}{rung.reason}".rstrip() + mark
            continue
        line += f"{item.settings.ubatch:>6}  {rate(item.speed.prefill_tok_s.expected):>8}  "
        line += f"{rate(item.speed.decode_tok_s.expected):>8}"
        on_cpu = item.cpu_moe_layers if experts else _on_cpu(item, blocks)
        yield line + (f"   {on_cpu:>6}" if experts or layers else "") + mark


def launch(screen: Screen, item: LaunchCommand) -> Iterator[str]:
    """The files, the command that starts the engine, and the commands around it; each block with an empty line."""
    for file in item.files:
        yield screen.heading(f"{file.name}  (a file)")
        yield from (f"  {line}" for line in file.text.splitlines())
        yield ""
    yield screen.heading(f"Command  ({item.engine}, {older_builds.named(item.build)})")
    yield from command(screen, item)
    yield ""
    for other in item.further:
        yield screen.heading(other.what)
        yield from command(screen, other)
        yield ""


def _on_cpu(item: Candidate, blocks: int) -> int:
    """Layers that are not wholly on a GPU."""
    return blocks - item.gpu_block_layers + item.cpu_ffn_layers + item.cpu_weight_layers


def command(screen: Screen, item: LaunchCommand | FurtherCommand) -> Iterator[str]:
    """The command, a flag a line, ready to paste; a short one that goes with another on one line."""
    if isinstance(item, FurtherCommand) and len(item.line) + 2 <= screen.width:
        yield f"  {screen.style(item.line, 'command')}"
        return
    for name, value in item.env.items():
        yield f"  {name}={shlex.quote(value)} \\"
    words = list(item.argv)
    most = min(88, screen.width - 6)
    lines = [shlex.quote(words[0])]
    for word in words[1:]:
        quoted = shlex.quote(word)
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    packed: list[str] = []
    for line in lines:
        if packed and len(packed) > 1 and len(packed[-1]) + len(line) < most:
            packed[-1] += f" {line}"
        else:
            packed.append(line)
    for index, line in enumerate(packed):
        end = " \\" if index < len(packed) - 1 else ""
        yield ("  " if index == 0 else "    ") + screen.style(line, "command") + end


def download(screen: Screen, spec: ModelSpec, machine: Machine) -> Iterator[str]:
    """How to get the file, against the free disk."""
    item = spec.download
    if item is None:
        return
    yield f"  {screen.style(shlex.join(item.argv), 'command')}"
    disk = machine.disk
    text = f"{publisher_gb(item.size_bytes)} from {item.url}"
    if disk and disk.free_bytes is not None and not machine.simulated:
        enough = disk.free_bytes >= item.size_bytes
        text += f"; {gib(disk.free_bytes)} free at {disk.path}" + ("" if enough else ": not enough")
        yield "  " + screen.style(text, "dim" if enough else "bad")
    else:
        yield "  " + screen.style(text, "dim")


def alternatives(screen: Screen, items: Sequence[Alternative]) -> Iterator[str]:
    """What other choices would have meant."""
    for item in items:
        yield from screen.wrap(f"{item.what}: {item.effect}", indent=2)


def working(screen: Screen, trace: Iterable[str]) -> Iterator[str]:
    """The numbers behind an answer, indented as they were."""
    for line in trace:
        if len(line) < 118:  # tables stay whole
            yield f"  {line}"
        else:
            yield from screen.wrap(line.lstrip(), indent=2 + len(line) - len(line.lstrip()))


def plan(
    screen: Screen,
    table: ModelTable,
    machine: Machine,
    item: Plan,
    made: LaunchCommand | None,
    request: Request,
    *,
    explain: bool,
    said: Sequence[Finding],
    programs: Sequence[FurtherCommand] = (),
    frontier: Sequence[str] = (),
) -> str:
    """The whole screen of a plan; `frontier` are the lines of its table of quants and contexts."""
    chosen = item.chosen
    lines = [*title(screen, table.spec, machine), ""]
    lines += [headline(screen, table, chosen, chosen.footprint.verdict)]
    lines += [*findings(screen, said, notes=False), ""]
    lines += [screen.heading("Memory"), *memory(screen, chosen.footprint), ""]
    lines += [screen.heading("Speed"), *speed(screen, chosen.speed, request), ""]
    if item.ladder:
        lines += [screen.heading("Context"), *ladder(screen, item.ladder, chosen, table.layers), ""]
    usable = chosen.footprint.verdict in ("fits", "tight")
    if item.relaxations:
        late = any(found.id == "ttft-not-kept" for found in said)
        heading = "What would keep the first token" if late else "What would serve all users at once"
        heading = heading if usable else "What would make it fit"
        lines += [screen.heading(heading), *alternatives(screen, item.relaxations), ""]
    if made is not None:
        lines += launch(screen, made)
    missing = [part for part in (table.spec, table.spec.projector) if part and part.download]
    if missing:
        lines += [screen.heading("Download first")]
        lines += [line for part in missing for line in download(screen, part, machine)] + [""]
    remarks = list(findings(screen, said, notes=True))
    if remarks:
        lines += [screen.heading("Good to know"), *remarks, ""]
    if explain:
        lines += [screen.heading("The working"), *working(screen, item.trace), ""]
        if frontier:
            lines += [screen.heading("Quants and contexts"), *frontier, ""]
        if usable and item.alternatives:
            lines += [screen.heading("Other choices"), *alternatives(screen, item.alternatives), ""]
        for other in programs:
            lines += [screen.heading(other.what), *command(screen, other), ""]
    else:
        more = "--explain shows the working, --json is for programs, --write DIR makes a launcher"
        lines += screen.wrap(more, indent=0, style="dim")
    return "\n".join(lines).rstrip() + "\n"
