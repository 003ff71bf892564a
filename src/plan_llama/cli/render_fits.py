"""The ranking of machines as a table for people and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from plan_llama.cli import plan_json
from plan_llama.cli.fits_command import Ranking, Row
from plan_llama.cli.options import ModelOptions, WishOptions, words
from plan_llama.cli.screen import Screen
from plan_llama.hardware.types import Machine
from plan_llama.models.spec import active_parameters
from plan_llama.solver.search import first_token_s
from plan_llama.solver.types import Candidate
from plan_llama.units import gib, rate, seconds, tokens

_HEADINGS = {
    "fits": "Fits, every margin kept",
    "tight": "Fits, but cuts into a margin",
    "pages-from-disk": "Would read from disk for every token",
    "does-not-fit": "Does not fit",
}
_STYLE = {"fits": "good", "tight": "warn", "pages-from-disk": "bad", "does-not-fit": "bad"}
_NAME = 29
_SHORTER = ("NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD Instinct ", "Intel ")


def text(screen: Screen, ranking: Ranking, model: ModelOptions, wished: WishOptions, *, explain: bool) -> str:
    """The table."""
    rows = ranking.rows
    spec = rows[0].task.table.spec
    active = active_parameters(spec)
    size = f"{spec.parameters / 1e9:.1f} B parameters"
    size += f", {active / 1e9:.1f} B active" if active < spec.parameters else ""
    request, work = rows[0].task.request, rows[0].task.wishes.workload
    lines = [screen.style(spec.name, "bold") + f"  ({size})"]
    users = f", {request.users} users at all times" if request.users and request.users > 1 else ""
    asked = (
        f"for {work.name}: {request.prompt_tokens:,} tokens in, {request.output_tokens:,} out, "
        f"{request.reuse_ratio * 100:.0f} % of a follow-up's prompt cached{users}"
    )
    lines += [*screen.wrap(asked, indent=0), ""]
    for verdict, heading in _HEADINGS.items():
        found = [row for row in rows if row.verdict == verdict]
        if found:
            lines += [screen.style(screen.heading(heading), _STYLE[verdict] if screen.colour else "")]
            lines += [*_table(screen, found, usable=verdict in ("fits", "tight")), ""]
    lines += list(_notes(screen, ranking, model, wished, explain=explain))
    return "\n".join(lines).rstrip() + "\n"


def _table(screen: Screen, rows: Sequence[Row], *, usable: bool) -> Iterator[str]:
    if usable:
        shared = rows[0].task.users is not None and rows[0].task.users > 1
        speed = "in all" if shared else "decode"
        head = f"  {'':<{_NAME}} {'quant':<11} {'context':>7} {speed:>6} {'prefill':>7} {'first':>6} {'whole':>6}"
        yield screen.style(head + ("   where" if screen.width >= 100 else ""), "dim")
    for row in rows:
        name = _short(row)
        chosen = row.plan.chosen if row.plan else None
        if not usable or chosen is None:
            yield from screen.wrap(f"{name:<{_NAME}} {_reason(row)}", indent=2)
            continue
        load = chosen.speed.load
        decode = load.aggregate_tok_s if load else chosen.speed.decode_tok_s.expected
        whole = load.request_s if load else chosen.speed.request_s
        slots = f"×{chosen.settings.parallel}" if chosen.settings.parallel > 1 else ""
        context = f"{tokens(_context(chosen))}{screen.glyph(slots[:1])}{slots[1:]}"
        line = (
            f"  {name:<{_NAME}} {row.task.table.spec.quant:<11} {context:>7} {rate(decode):>6} "
            f"{rate(chosen.speed.prefill_tok_s.expected):>7} {seconds(first_token_s(chosen)):>6} {seconds(whole):>6}"
        )
        yield line + (f"   {where(row.task.table.layers, chosen)}" if screen.width >= 100 else "")


def _context(chosen: Candidate) -> int:
    return chosen.settings.slot_limit or chosen.settings.context_per_slot


def where(layers: int, chosen: Candidate) -> str:
    """What is on the CPU, in a word."""
    if not chosen.footprint.devices:
        return "CPU"
    if chosen.gpu_block_layers < layers:
        return f"{layers - chosen.gpu_block_layers} of {layers} layers on the CPU"
    if chosen.cpu_moe_layers:
        return f"experts of {chosen.cpu_moe_layers} layers on the CPU"
    return "GPU"


def _short(row: Row) -> str:
    if row.place.kind == "here":
        return "this machine"
    if row.place.kind == "asked":
        return "the machine of the options"
    name = row.place.name
    for start in _SHORTER:
        name = name.removeprefix(start)
    return name if len(name) <= _NAME else name[: _NAME - 1] + "."


def _reason(row: Row) -> str:
    """Why it does not fit, in a clause."""
    if row.plan is None:
        return "no layer fits beside this context"
    lacks = [item.what for item in row.plan.relaxations if " more " in item.what]
    quant = row.task.table.spec.quant
    said = f"{quant}: {lacks[0]} would be needed" if lacks else f"{quant}: too little memory"
    if row.verdict == "pages-from-disk":
        said += f"; {rate(row.plan.chosen.speed.decode_tok_s.expected)} tok/s"
    return said


def _notes(
    screen: Screen, ranking: Ranking, model: ModelOptions, wished: WishOptions, *, explain: bool
) -> Iterator[str]:
    shared = ranking.rows[0].task.users is not None
    yield from screen.wrap(
        "decode and prefill in tokens per second; first: the first token of a new prompt; whole: the last one"
        + ("; with users, as each of them gets it; context of each slot × slots" if shared else ""),
        indent=0,
        style="dim",
    )
    yield from screen.wrap(
        f"single cards stand in an assumed host, all of their memory free: {_host(ranking.host)}",
        indent=0,
        style="dim",
    )
    best = ranking.rows[0]
    command = shlex.join(_plan_argv(best, model, wished))
    yield from screen.wrap(f"{command} shows the first one's plan", indent=0, style="dim")
    if explain:
        count = len(ranking.rows)
        yield from screen.wrap(f"{count} machines planned in {ranking.took_s:.1f} s", indent=0, style="dim")


def _host(host: Machine) -> str:
    cpu, ram = host.cpu, host.ram
    memory = f"{gib(ram.total_bytes)} of {ram.type}-{ram.speed_mt_s} in {ram.channels} channels"
    return f"{cpu.name} with {cpu.physical_cores} cores, {memory}"


def _plan_argv(row: Row, model: ModelOptions, wished: WishOptions) -> list[str]:
    """The command that shows the whole plan of a row."""
    named = words(model)
    if model.quant is None and row.task.table.spec.quant:
        named += ["--quant", row.task.table.spec.quant]
    return ["plan-llama", *named, *row.place.options, *words(wished)]


def as_json(ranking: Ranking, model: ModelOptions, wished: WishOptions) -> dict[str, Any]:
    """One object: the request, the host of the cards, a row per machine, the best first."""
    spec = ranking.rows[0].task.table.spec
    request = ranking.rows[0].task.request
    return {
        "schema": plan_json.SCHEMA,
        "model": {
            "name": spec.name,
            "architecture": spec.architecture,
            "parameters": spec.parameters,
            "active_parameters": active_parameters(spec),
            "layers": spec.layers,
            "context_train": spec.context_train or None,
        },
        "request": {
            "workload": ranking.rows[0].task.wishes.workload.name,
            "prompt_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "reuse_ratio": request.reuse_ratio,
            "users": request.users,
        },
        "card_host": _host(ranking.host),
        "machines": [_machine(row, model, wished) for row in ranking.rows],
        "took_s": ranking.took_s,
    }


def _machine(row: Row, model: ModelOptions, wished: WishOptions) -> dict[str, Any]:
    spec, machine, chosen = row.task.table.spec, row.place.machine, row.plan.chosen if row.plan else None
    usable = row.verdict in ("fits", "tight")
    return {
        "name": row.place.name,
        "kind": row.place.kind,
        "gpus": [gpu.name for gpu in machine.gpus],
        "gpu_bytes": sum(gpu.total_bytes for gpu in machine.gpus),
        "ram_bytes": machine.ram.total_bytes,
        "unified": machine.unified,
        "verdict": row.verdict,
        "reason": None if usable else _reason(row),
        "quant": spec.quant,
        "file_bytes": spec.file_bytes,
        "context_per_slot": _context(chosen) if chosen else None,
        "parallel": chosen.settings.parallel if chosen else None,
        "ubatch": chosen.settings.ubatch if chosen else None,
        "layers_on_gpu": chosen.gpu_block_layers if chosen else None,
        "cpu_moe_layers": chosen.cpu_moe_layers if chosen else None,
        "speed": plan_json.speed(chosen.speed) if chosen else None,
        "plan": _plan_argv(row, model, wished),
    }
