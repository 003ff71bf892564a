"""Which flags the memory of a model is measured with: four plain sets, then mixtures.

In the mixtures every column holds each of its values about equally often and is shuffled by itself, seeded by the
model's name. So every model meets every value, and all models together meet every pair of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

USED_MIB = 512  # of every simulated card, before the program starts
_CARD = 24576


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One measurement: the program whose reservation is asked for, the cards (MiB) and its arguments."""

    program: str
    cards: tuple[int, ...]
    flags: tuple[str, ...]


def flag_sets(name: str, *, blocks: int, context: int, experts: bool, mixtures: int) -> tuple[Asked, ...]:
    """The measurements of a model; `context` is the longest that it is asked for."""
    half = max(1, blocks // 2)
    plain = (
        Asked(program="llama-fit-params", cards=(_CARD,), flags=_words("-ngl 999 -c 4096 -np 1 -fa on -nr")),
        Asked(program="llama-server", cards=(_CARD,), flags=_words("-ngl 999 -c 4096 -np 1 -fa off -nr")),
        Asked(program="llama-server", cards=(_CARD,), flags=_words("-ngl 999 -c 8192 -nr")),
        # caches and half the weights on the host, for several slots: what `-fa auto` gives up differs by side
        Asked(
            program="llama-server",
            cards=(_CARD,),
            flags=_words(f"-ngl {half} -c 4096 -np 4 -fa auto --no-op-offload -nkvo -nr"),
        ),
    )
    columns: dict[str, Sequence[str]] = {
        "program": ("llama-fit-params", "llama-server"),
        "cards": (
            "",
            f"{_CARD}",
            f"{_CARD}",
            f"{_CARD},{_CARD}",
            f"{_CARD},8192",
            f"{_CARD},{_CARD},{_CARD},{_CARD}",
            "8192,24576,16384,49152",
        ),
        "layers": ("-ngl 0", f"-ngl {half}", "-ngl 999", "-ngl all"),
        "context": tuple(f"-c {tokens}" for tokens in sorted({512, 4096, 32768, context})),
        "slots": ("-np 1", "-np 1", "-np 4", "-np 4 -kvu", ""),
        "ubatch": ("-ub 128", "", "-ub 2048"),
        "attention": (
            "-fa on",
            "-fa off",
            "",
            "-fa on -ctk q8_0 -ctv q8_0",
            "-fa on -ctk q4_0 -ctv q4_0",
            "-ctk q8_0 -ctv q8_0",
            "-fa off -ctk q8_0",
        ),
        "experts": ("", "-cmoe", f"-ncmoe {half}") if experts else ("", "", f"-ncffn {half}"),
        "split": ("", "", "-sm none", "-ts 3,1,1,2"),
        "other": (
            "",
            "",
            "",
            "--swa-full",
            "-nkvo",
            "--no-op-offload",
            r"-ot attn_.*=CPU",
            r"-ot blk\.[0-9]*[02468]\.ffn_.*=CPU",
            r"-ot blk\.1\.=CUDA0",
        ),
    }
    drawn = {column: _shuffled(f"{name} {column}", values, mixtures) for column, values in columns.items()}
    mixed = [_mixture({column: values[row] for column, values in drawn.items()}) for row in range(mixtures)]
    return (*plain, *mixed)


def _shuffled(seed: str, values: Sequence[str], count: int) -> list[str]:
    found = [values[index % len(values)] for index in range(count)]
    Random(seed).shuffle(found)  # noqa: S311  # to be made again, not to be secret
    return found


def _mixture(row: dict[str, str]) -> Asked:
    cards = tuple(int(size) for size in row["cards"].split(",") if size)
    if not cards:
        row = {**row, "layers": "", "split": ""}
        if "CUDA0" in row["other"]:
            row["other"] = ""
    elif row["split"] == "-sm none" and len(cards) > 1:
        row = {**row, "split": "-sm none -mg 1"}
        row["other"] = row["other"].replace("CUDA0", "CUDA1")
    elif len(cards) == 1 and row["split"].startswith("-ts"):
        row = {**row, "split": ""}
    if row["program"] != "llama-server":
        row = {**row, "slots": row["slots"].replace(" -kvu", "")}  # no argument of llama-fit-params
    names = ("layers", "context", "slots", "ubatch", "attention", "experts", "split", "other")
    text = " ".join(row[name] for name in names if row[name])
    return Asked(program=row["program"], cards=cards, flags=_words(f"{text} -nr"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())
