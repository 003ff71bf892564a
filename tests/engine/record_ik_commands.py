"""Ask ik_llama.cpp's own parser about each argument of its table, and about commands that are written for it.

usage: python -m tests.engine.record_ik_commands FOLDER > tests/data/ik_llama/accepted.json

FOLDER holds its programs. `--help` behind a command prints the usage, and in front of it what was not taken; its exit
code says nothing.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from plan_llama.engines import ik_llama
from plan_llama.engines.arguments import Argument
from plan_llama.memory.types import Settings
from tests.engine import processes
from tests.engine.test_commands import FILES, OTHER, SAMPLE
from tests.property.test_ik_roundtrip import plans, written

PROGRAMS = ("llama-server", "llama-cli", "llama-bench")
# These end the program, load something or connect at once.
# How its refusals begin; it says other things of what it takes.
REFUSALS = ("error", "legacy speculative option", "terminate called", "sto")
OWN = {
    **dict.fromkeys(("-ctk-first", "-ctk-last", "-ctv-first", "-ctv-last"), "q8_0,2"),
    **dict.fromkeys(("-ser", "-gfm", "-op", "-gp"), "1,1"),
    "--log-format": "json",
    "--chat-template": "chatml",
    "--n-cpu-moe": "1",
}
LEFT_OUT = {"-h", "--help", "--version", "--rpc", "--draft-params", "--override-kv"}


def values(argument: Argument, folder: Path) -> list[str]:
    """Words that the argument should take, by the table's own account of it."""
    if argument.kind in ("flag", "switch") or not argument.values:
        return []
    if argument.kind == "strings":
        return ["1", "2"]
    if argument.choices:
        return [argument.choices[0]]
    for name in argument.names:
        if name in (known := OTHER | OWN):
            return [known[name]]
        if name in FILES:
            return [str(folder / "empty.json")]
    sample = SAMPLE.get(argument.kind, str(folder / "empty.json"))
    return [sample] * len(argument.values)


def lines(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each spelling of each argument, and sixty commands."""
    for program in PROGRAMS:
        for argument in ik_llama.flags().arguments:
            if program in argument.programs and not LEFT_OUT & set(argument.names):
                for name in (*argument.names, *argument.negative):
                    first = ["-m", "x.gguf"] if "-hfr" in argument.names else []
                    yield (
                        program,
                        [*first, name, *(values(argument, folder) if name in argument.names else [])],
                    )
    made: list[list[str]] = []

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(plans())
    def collect(plan: tuple[int, Settings]) -> None:
        made.append(list(written(plan).argv[1:]))

    collect()
    for words in made:
        yield "llama-server", words


def error(folder: Path, program: str, words: Sequence[str], scratch: Path) -> str:
    """What the parser says against a command; empty where it takes it. This build has no card to name."""
    words = [re.sub(r"=CUDA\d", "=CPU", word) for word in words]
    env = processes.engine_env(folder)
    done = processes.finished([folder / program, *words, "--help"], env=env, timeout_s=30)
    before, found, _ = (done.stderr + done.stdout).partition("usage:")
    said = [line for line in before.splitlines() if line.startswith(REFUSALS)]
    assert found or said, words
    return said[0].replace(str(scratch), "FOLDER") if said else ""


def main() -> int:
    """Exit code 0."""
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "empty.json").write_text("{}", "utf-8")
        found = [
            [
                program,
                [word.replace(name, "FOLDER") for word in words],
                error(folder, program, words, scratch),
            ]
            for program, words in lines(scratch)
        ]
    sys.stdout.write("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
