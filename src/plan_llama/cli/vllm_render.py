"""A vLLM plan or check as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from plan_llama.cli import render_plan
from plan_llama.cli.screen import Screen
from plan_llama.engines.launch import LaunchCommand
from plan_llama.findings import Finding
from plan_llama.hardware.types import Machine
from plan_llama.models.checkpoints import Checkpoint
from plan_llama.solver.types import Alternative
from plan_llama.solver.vllm.judge import Judged
from plan_llama.solver.vllm.search import cut_text
from plan_llama.speed.types import Request
from plan_llama.units import gib, tokens

_STYLE = {"fits": "good", "tight": "warn"}


def page(
    screen: Screen,
    checkpoint: Checkpoint,
    machine: Machine,
    judged: Judged,
    request: Request,
    *,
    made: LaunchCommand | None,
    said: Sequence[Finding],
    alternatives: Sequence[Alternative] = (),
    trace: Sequence[str] = (),
    closing: str = "",
) -> str:
    """The whole screen. `closing` stands where a check has nothing to correct."""
    nodes = judged.setup.nodes
    lines = [*render_plan.title(screen, checkpoint.spec, machine)]
    if nodes > 1:
        lines.append(f"{nodes} machines of this kind")
    lines += ["", *_headline(screen, judged), *render_plan.findings(screen, said, notes=False), ""]
    if judged.footprint is not None:
        lines += [
            screen.heading("Memory" + (" of one machine" if nodes > 1 else "")),
            *_memory(screen, judged),
            "",
        ]
    if judged.speed is not None and judged.verdict in ("fits", "tight"):
        lines += [screen.heading("Speed"), *render_plan.speed(screen, judged.speed, request), ""]
    if made is not None:
        lines += list(render_plan.launch(screen, replace(made, files=())))
        for file in made.files:
            text = f"{file.name} does the same on Kubernetes: --write DIR writes it, --json holds it"
            lines += [*screen.wrap(text, indent=0), ""]
    elif closing:
        lines += [closing, ""]
    if checkpoint.spec.download is not None and not checkpoint.spec.present:
        lines += [screen.heading("Download"), *render_plan.download(screen, checkpoint.spec, machine), ""]
    if alternatives:
        lines += [screen.heading("Other choices"), *render_plan.alternatives(screen, alternatives), ""]
    notes = list(render_plan.findings(screen, said, notes=True))
    if notes:
        lines += [screen.heading("Good to know"), *notes, ""]
    if trace:
        lines += [screen.heading("The working"), *render_plan.working(screen, trace), ""]
    return "\n".join(lines).rstrip() + "\n"


def _headline(screen: Screen, judged: Judged) -> Iterator[str]:
    start = judged.setup.start
    word = judged.verdict.upper()
    plain = f"{word}  {cut_text(judged)}; {tokens(start.max_model_len)} tokens of context"
    styled = screen.style(word, _STYLE.get(judged.verdict, "bad"))
    yield "\n".join(screen.wrap(plain, indent=0)).replace(word, styled, 1)


def _memory(screen: Screen, judged: Judged) -> Iterator[str]:
    used, capacity, backend = judged.footprint, judged.capacity, judged.backend
    assert used is not None  # noqa: S101 - the caller looked
    yield from render_plan.memory(screen, used)
    if capacity is None or backend is None:
        return
    start = judged.setup.start
    yield from screen.wrap(
        f"GPU KV cache size: {capacity.tokens:,} tokens, maximum concurrency for {start.max_model_len:,} tokens per "
        f"request: {capacity.concurrency:.2f}x ({capacity.blocks:,} blocks of {backend.block_size} tokens, "
        f"{backend.kv_dtype} in {backend.name}, as vLLM's log will say it)",
        indent=2,
    )
    if judged.stages and start.kv_bytes is None:
        budget = judged.stages[0].budget_bytes
        yield f"  of {gib(budget)} per GPU ({start.utilisation:g} of its memory), which vLLM takes at once"
