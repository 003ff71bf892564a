"""How the speed model compares with published runs: the table of docs/reference/speed.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from statistics import median

from scripts.speed_cases import Case

from plan_llama.hardware.types import Machine
from plan_llama.speed import passes
from plan_llama.speed.constants import Constants
from plan_llama.speed.estimate import placement_class
from plan_llama.speed.rates import Assumptions, ram_peak, widened

CLASSES = ("gpu", "gpu_moe", "offload", "cpu", "unified")
_NAMES = {
    "gpu": "dense, on GPUs",
    "gpu_moe": "experts, on GPUs",
    "offload": "experts on the host",
    "cpu": "CPU only",
    "unified": "unified memory",
    "offload, RAM bandwidth stated": "… RAM bandwidth stated",
    "offload, not stated": "… not stated",
    "own": "own runs (H200)",
    "own_h100": "own runs (H100), in no fit",
    "own_cpu": "own runs (two CPU cores)",
}
APART = 1.2  # what a difference of predictions has to be to count
OWN = ("own", "own_h100", "own_cpu")  # classes of runs that nobody published


_TABLE_HEAD = (
    "| runs | decode: n | median error | in range | roofline | prefill: n | median error | in range |",
    "|---|---|---|---|---|---|---|---|",
)


def size_class(case: Case) -> str:
    """The class whose spread the estimate of a case takes."""
    return placement_class(case.machine, case.traffic)


def resolve(case: Case, constants: Constants) -> tuple[passes.Work, Assumptions]:
    """A case's placement with its rates."""
    said = Assumptions()
    work = passes.resolve(
        case.machine,
        case.traffic,
        case.settings,
        constants,
        said,
        engine=case.engine,
        resident_ratio=1.0,
        repacked=case.repacked,
    )
    if work.host is not None and not case.tiles:
        work = replace(work, host=replace(work.host, tiled=frozenset()))
    return work, said


def predict(case: Case, constants: Constants) -> tuple[float, float]:
    """Decode and prompt tokens per second of a case, at the depth at which it was measured."""
    work, _ = resolve(case, constants)
    decode_s = sum(passes.decode(work, case.depth).values())
    prompt_s = sum(passes.prompt(work, case.prompt_tokens, case.depth).values())
    return 1 / decode_s, case.prompt_tokens / prompt_s


def roofline(case: Case, constants: Constants) -> float:
    """Tokens per second if all active weights came at the peak bandwidth of the memory that holds most of
    them."""
    weights: Counter[int] = Counter()
    for t in case.traffic:
        weights[t.device] += sum(t.dense_bytes.values()) + sum(t.expert_bytes.values())
    home = max(weights, key=lambda device: weights[device])
    return _bandwidth(case.machine, home, constants) / case.active_bytes


def _bandwidth(machine: Machine, device: int, constants: Constants) -> float:
    own = machine.gpus[device].bandwidth_bytes_per_s if device >= 0 else None
    return own or ram_peak(machine, constants, Assumptions())


def median_error(errors: Mapping[str, Sequence[float]] | Sequence[float]) -> float:
    """The median of |predicted / measured - 1| over log errors."""
    values = [v for group in errors.values() for v in group] if isinstance(errors, Mapping) else errors
    return median(abs(math.exp(v) - 1) for v in values)


def table(cases: Iterable[Case], constants: Constants) -> str:
    """A Markdown table by class: runs, median errors of the shipped constants, share of runs inside the
    range."""
    rows: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        name = size_class(case)
        _, said = resolve(case, constants)
        decode, prefill = predict(case, constants)
        for group in (name, "all"):
            row = rows.setdefault(group, {key: [] for key in ("decode", "prefill", "roof", "in_d", "in_p")})
            if case.decode_tok_s:
                error = math.log(decode / case.decode_tok_s)
                row["decode"].append(error)
                row["roof"].append(math.log(roofline(case, constants) / case.decode_tok_s))
                spread = widened(constants.spread_decode[name], said.factors)
                row["in_d"].append(float(abs(error) <= math.log(spread)))
            if case.prefill_tok_s:
                error = math.log(prefill / case.prefill_tok_s)
                row["prefill"].append(error)
                spread = widened(constants.spread_prefill[name], said.factors)
                row["in_p"].append(float(abs(error) <= math.log(spread)))
    lines = [*_TABLE_HEAD]
    lines += [_table_row(name, rows[name]) for name in (*CLASSES, "all") if name in rows]
    return "\n".join(lines) + "\n"


def held_out_table(
    cases: Iterable[Case], constants: Constants, held: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The same by class for predictions of a fit that had not seen the run's group."""
    rows: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        name = size_class(case)
        _, said = resolve(case, constants)
        groups = [case.data_class] if case.data_class in OWN else [name, "all"]
        if name == "offload" and case.data_class not in OWN:
            known = case.machine.ram.bandwidth_bytes_per_s is not None
            groups.append("offload, RAM bandwidth stated" if known else "offload, not stated")
        for group in groups:
            row = rows.setdefault(group, {key: [] for key in ("decode", "prefill", "roof", "in_d", "in_p")})
            decode, prefill = held[case.id]
            if case.decode_tok_s:
                error = math.log(decode / case.decode_tok_s)
                row["decode"].append(error)
                row["roof"].append(math.log(roofline(case, constants) / case.decode_tok_s))
                row["in_d"].append(
                    abs(error) <= math.log(widened(constants.spread_decode[name], said.factors))
                )
            if case.prefill_tok_s:
                error = math.log(prefill / case.prefill_tok_s)
                row["prefill"].append(error)
                row["in_p"].append(
                    abs(error) <= math.log(widened(constants.spread_prefill[name], said.factors))
                )
    order = (*CLASSES[:3], "offload, RAM bandwidth stated", "offload, not stated", *CLASSES[3:], "all", *OWN)
    return [*_TABLE_HEAD, *(_table_row(name, rows[name]) for name in order if name in rows)]


def every_case(cases: Iterable[Case], held: Mapping[str, tuple[float, float]]) -> list[str]:
    """Predicted and measured of each case, by class."""
    lines = [
        "| run | class | decode: predicted | measured | prefill: predicted | measured |",
        "|---|---|---|---|---|---|",
    ]
    for case in sorted(cases, key=lambda c: (CLASSES.index(size_class(c)), c.id)):
        cells = [case.id, _NAMES[size_class(case)]]
        for predicted, measured in zip(held[case.id], (case.decode_tok_s, case.prefill_tok_s), strict=True):
            cells += [f"{predicted:.1f}", f"{measured:.1f}"] if measured else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _table_row(name: str, row: Mapping[str, Sequence[float]]) -> str:
    cells = (
        _NAMES.get(name, name),
        str(len(row["decode"])),
        _percent(row["decode"]),
        _share(row["in_d"]),
        _percent(row["roof"]),
        str(len(row["prefill"])),
        _percent(row["prefill"]),
        _share(row["in_p"]),
    )
    return f"| {' | '.join(cells)} |"


def _percent(errors: Sequence[float]) -> str:
    return f"{100 * median_error(errors):.1f} %" if errors else "-"


def _share(inside: Sequence[float]) -> str:
    return f"{100 * sum(inside) / len(inside):.0f} %" if inside else "-"


def _fitted_percent(fitted: Mapping[str, object], kind: str, what: str, digits: int) -> str:
    return f"{100 * float(str(fitted[f'held_out_{kind}_{what}'])):.{digits}f} %"


def page(
    cases: Sequence[Case],
    left_out: Sequence[tuple[str, str]],
    constants: Constants,
    held: Mapping[str, tuple[float, float]],
    fitted: Mapping[str, object],
    fresh: str,
) -> str:
    """The whole of docs/reference/speed.md; `fresh` is its section on runs that no constant has seen."""
    held_out = [
        f"- {kind}: {_fitted_percent(fitted, kind, 'median_abs_error', 1)} median error over "
        f"{fitted[f'{kind}_rows']} runs, {_fitted_percent(fitted, kind, 'in_range', 0)} in range"
        for kind in ("decode", "prefill")
    ]
    reasons = Counter(reason.split(":")[0] for _, reason in left_out)
    worst = sorted(
        (
            (abs(math.log(held[c.id][0] / c.decode_tok_s)), c.id, held[c.id][0], c.decode_tok_s)
            for c in cases
            if c.decode_tok_s
        ),
        reverse=True,
    )[:10]
    return "\n".join(
        [
            "# How fast, and how sure",
            "",
            INTRODUCTION,
            "## Against published runs",
            "",
            f"{sum(c.data_class not in OWN for c in cases)} runs of `tests/data/throughput/calibration.jsonl`,",
            f"{sum(c.data_class == 'own' for c in cases)} of our own on an H200 (`tests/data/cuda`)",
            f"and {sum(c.data_class == 'own_cpu' for c in cases)} on two cores of an EPYC (`tests/data/cpu`);",
            f"{sum(c.data_class == 'own_h100' for c in cases)} on an H100, which no constant has seen;",
            f"constants of {fitted['date']}.",
            *_TABLE_NOTE,
            "",
            table([case for case in cases if case.data_class not in OWN], constants),
            *_HELD_OUT_NOTE,
            "",
            *held_out,
            "",
            *held_out_table(cases, constants, held),
            "",
            *_RANGE_NOTE,
            "",
            fresh,
            "## Ranked on a CPU",
            "",
            *_ranking(cases, constants, held),
            "",
            "## Where it is wrong",
            "",
            "The ten decode speeds furthest off, each predicted without its own group:",
            "",
            "| run | predicted | measured |",
            "|---|---|---|",
            *(f"| {name} | {predicted:.1f} | {measured:.1f} |" for _, name, predicted, measured in worst),
            "",
            "## Every run",
            "",
            "Tokens per second, each predicted by a fit that had not seen its group.",
            "",
            *every_case(cases, held),
            "",
            "## Runs that are not compared",
            "",
            *(
                f"- {count}: {reason}"
                for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            ),
            "",
        ]
    )


def ranked(cases: Iterable[Case], predicted: Mapping[str, tuple[float, float]]) -> tuple[int, int]:
    """Pairs of own runs on a CPU, of one model and task, whose predictions differ by more than APART and whose
    measurements do not overlap: how many, and how many of them were measured in that order."""
    tasks: dict[tuple[object, ...], list[tuple[float, tuple[float, ...]]]] = {}
    for case in cases:
        if case.data_class != "own_cpu":
            continue
        task = (case.group, case.decode_tok_s is None, case.prompt_tokens, case.depth)
        tasks.setdefault(task, []).append((predicted[case.id][case.decode_tok_s is None], case.runs))
    pairs = [
        min(fast[1]) > max(slow[1])
        for runs in tasks.values()
        for fast, slow in permutations(runs, 2)
        if fast[0] > APART * slow[0] and (min(fast[1]) > max(slow[1]) or max(fast[1]) < min(slow[1]))
    ]
    return len(pairs), sum(pairs)


def _ranking(
    cases: Sequence[Case], constants: Constants, held: Mapping[str, tuple[float, float]]
) -> tuple[str, ...]:
    pairs, right = ranked(cases, {case.id: predict(case, constants) for case in cases})
    unseen, unseen_right = ranked(cases, held)
    return (
        "Four models of 0.6 to 1.3 B on two cores (`tests/data/cpu`), two of them with four layers as well: the",
        "plan's own settings, other quants, one thread, no repacking, other caches, with and without flash",
        "attention. Of the pairs of one model and task whose three runs do not overlap and whose predictions",
        f"differ by more than {100 * (APART - 1):.0f} %, {right} of {pairs} were measured in the predicted order;",
        f"of those predicted without the model's own runs, {unseen_right} of {unseen}.",
    )


INTRODUCTION = """\
The speed model adds up what one pass over the model reads and computes, device by device, because llama.cpp
runs the devices one after the other.

Decode, per token: weights on each GPU over its bandwidth times a share that depends on the kind of card and
the tensor type; routed experts likewise, less efficiently, with a cost per layer; weights on the host
through RAM plus arithmetic on the cores, which is what binds table-based types (IQ1 to IQ3); a hand-over
for every layer whose experts are on the host; the cache cells that attention reads; and the drive, for the
share of host weights that does not stay in RAM.

Prompts, per micro-batch: arithmetic on the GPUs, with experts in whole tiles for each that some token chose; the
mask of attention, which one core fills; for weights on the host, from 32 tokens on, a copy of the
experts that the micro-batch touches over PCIe and the arithmetic on the GPU, else the CPU computes;
attention over the cells before. On cores only the last token of a prompt is
charged for the output head. Behind the last layer's attention llama.cpp goes on with the tokens whose output is
asked for: with one of a prompt that llama-server gets, and with one of each batch that llama-bench reads. So
that layer's feed-forward, or its experts, are charged once for a prompt, and the host's are not copied for it,
but with a model's own block for drafting, and for the architectures that pick these tokens behind the last
layer (gpt-oss, Qwen3-Next, Qwen3.5, Gemma 4, Step-3.5 and others). With experts on the host and five layers that
have some, `tests/data/cuda` shows it.

On cores, reading and computing overlap in part, and one thread reads no more than `plan-llama calibrate`
measured for one. llama.cpp interleaves the rows of some types (Q4_0, Q4_K, IQ4_NL and MXFP4 with AVX2), which
is faster; ik_llama.cpp unpacks all types for prompts, which makes them equal. Experts that eight or more rows
of a prompt chose are multiplied in tiles of 16 rows (K and IQ types on x86, since September 2026), others row
by row.

Flash attention on cores has no fast path for a quantised cache, so that prompts over a deep one take several
times as long. With a cache of f16 a token after a deep prompt is slower with it than without: every head goes
through the rows of all heads, page by page of memory, and from about 2,048 pages per thread on (4,096 tokens of
a model with 8 heads of 128 in K and V on two cores) none of them is found again: a fifth of the speed after
16,384 tokens was measured (`tests/data/cpu`), where prompts lose a quarter.

Experts of a layer whose attention is on another card cost a hand-over, and a row of 32-bit numbers there and back
for every token, over the slower of the links. No published run was of that kind.

Several cards with a layer split work in turn on a token, so they add memory and not speed; on long prompts
they work on successive micro-batches unless a tensor is overridden. Two sockets count as one. What the
machine does not tell (RAM speed, PCIe link, an unknown card) is assumed, said with the estimate, and widens
its range.

Several users: they share the reading of the weights, and each adds its cache and its arithmetic.
llama-server gives every writing slot one token per turn of its loop and fills the rest of a batch with
prompts, so a prompt holds up all; the figures under load are the steady state of that loop ([size a
server](../guides/server.md)). More than one token means matrix kernels with few columns, which are slower than
the arithmetic of a prompt: by how much is from llama-batched-bench on an H100 (Llama 3.1 8B, 1 to 64 streams,
`tests/data/cuda/h100`). Over 195 published runs with several streams (a GB10 and an M2 Ultra, seven models, 2 to 32
streams, `tests/data/throughput/batched.jsonl`), to which nothing was fitted, the gain against one stream is off
by 11 % in the median, and by less than a factor of 1.5 for 95 % of them; a hybrid model (Nemotron 3
Super) gains less than predicted. With all experts in RAM gpt-oss 20B wrote 30, 44, 51, 154 and 294 tokens per second
with 1, 8, 16, 32 and 64 streams on the H100 (from 32 on the experts are copied to the card); predicted were
37, 50, 56, 159 and 311.

Drafting with the model's own block (`--spec-type draft-mtp`): a step drafts up to three tokens one after
the other, each with the block and the output head, and verifies them in one batch. That each is right after
right ones is assumed with a chance of 80 %. A dense model on a GPU gains twofold (predicted 2.0, 2.3, 1.9
and 2.3 times where 1.8, 2.4, 1.5 and 2.2 were measured, with IQ4_XS and Q6_K standing in for Q4_K_M and
Q8_0, `tests/data/throughput/drafting.jsonl`); with experts in RAM every verified token brings experts of
its own, and drafting loses.
"""

_TABLE_NOTE = (
    "The error is the median of |predicted ÷ measured − 1|; *in range* is the share of runs between the",
    "low and the high figure. The roofline, as an error too, divides the peak bandwidth of the memory",
    "that holds most weights by all active weights.",
)
_HELD_OUT_NOTE = (
    "The constants were fitted to these runs. On runs that a fit has not seen (each group left out in turn;",
    "runs of one source, machine and model stay together) the errors are:",
)
_RANGE_NOTE = (
    "The ranges are set from those unseen errors, class by class, to hold four of five: their share is so",
    "by construction, the medians are not. An estimate for a machine whose description lacks something",
    "gets a wider range than that.",
)
