"""Record what the real llama-server says of the published commands in tests/data/commands.

PLAN_LLAMA_ENGINE_BIN=... python -m tests.engine.record_commands
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from plan_llama.cli import check_file
from plan_llama.engines.commandline import parse
from plan_llama.engines.flags import FlagTable
from tests.engine import processes

FOLDER = Path(__file__).parents[1] / "data/commands"
# What would be fetched before --help is reached.
_FETCHED = frozenset(("-hf", "-hff", "-mu", "-hfd"))


def exits(engine_bin: Path, file: Path) -> list[int]:
    """The exit status of `llama-server ARGS --help` for each command of a file."""
    table = FlagTable.load(11434)
    found = []
    for given in check_file.in_file(str(file), table):
        parsed = parse(given.argv, table=table, env=given.env)
        words: list[str] = []
        for item in parsed.arguments:
            if item.from_env or (item.argument and _FETCHED & set(item.argument.names)):
                continue
            inside = "=" in item.spelling or " " in item.spelling
            words += [item.spelling] if inside else [item.spelling, *item.values]
        env = {
            name: value
            for name, value in given.env.items()
            if not name.startswith(("LLAMA_ARG_MODEL", "LLAMA_ARG_HF"))
        }
        done = processes.finished(
            [engine_bin / "llama-server", *words, "--help"],
            env=processes.engine_env(engine_bin, **env),
            timeout_s=20,
        )
        found.append(done.returncode)
    return found


def files() -> list[Path]:
    """Every published command."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix not in (".md", ".json"))


def main() -> None:
    engine_bin = Path(os.environ["PLAN_LLAMA_ENGINE_BIN"])
    target = FOLDER / "cases.json"
    known: dict[str, Any] = json.loads(target.read_text("utf-8")) if target.exists() else {}
    cases = {path.name: {**known.get(path.name, {}), "exit": exits(engine_bin, path)} for path in files()}
    target.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
