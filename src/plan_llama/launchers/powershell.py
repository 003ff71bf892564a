"""A PowerShell script (Windows PowerShell 5.1 and newer) that starts the planned command after the same checks."""

from __future__ import annotations

import re
from pathlib import Path

from plan_llama.launchers.types import Recipe, check_words

FILE_NAME = "start-llama-server.ps1"
# All of these end a string that began with an apostrophe (PowerShell's tokenizer, about_Quoting_Rules).
_APOSTROPHES = re.compile("(['\u2018\u2019\u201a\u201b])")


def script(recipe: Recipe) -> str:
    """The script. Raises InputError for a word with a NUL character."""
    check_words(recipe, raw=False)
    command, needs = recipe.command, recipe.needs
    checks = [f"Test-ModelFile {quote(item.path)} {item.size_bytes}" for item in needs.files]
    checks += [
        f"Test-Gpu {gpu.backend} {gpu.index} {quote(gpu.uuid or '')} {quote(gpu.name)} {gpu.need_bytes} "
        f"{gpu.planned_free_bytes}"
        for gpu in needs.gpus
        if gpu.need_bytes
    ]
    if needs.ram_need_bytes:
        pageable = "$true" if needs.pageable else "$false"
        checks.append(f"Test-Ram {needs.ram_need_bytes} {needs.planned_ram_bytes} {pageable}")
    filled = {
        "NAME": FILE_NAME,
        "HEADING": f"# {recipe.heading}\n" if recipe.heading else "",
        "ENGINE": command.engine,
        "BUILD": str(command.build),
        "EXECUTABLE": quote(command.argv[0]),
        "ARGUMENTS": ",\n".join(f"    {quote(word)}" for word in command.argv[1:]),
        "HOST": quote(recipe.host),
        "PORT": quote(recipe.port),
        "CHECKS": "\n".join(checks),
        "EXPORTS": "".join(f"$env:{name} = {quote(value)}\n" for name, value in command.env.items()),
    }
    template = (Path(__file__).parent / "powershell.ps1.in").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: filled[match[1]], template)


def quote(word: str) -> str:
    """A word as a literal string."""
    return "'" + _APOSTROPHES.sub(r"\1\1", word) + "'"
