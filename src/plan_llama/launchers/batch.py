"""A batch file for cmd.exe that starts the planned command, with the checks that cmd can make."""

from __future__ import annotations

import re
from pathlib import Path

from plan_llama.errors import InputError
from plan_llama.launchers.types import ModelFile, Recipe, by_line, check_words
from plan_llama.units import MIB

FILE_NAME = "start-llama-server.cmd"
_SPECIAL = re.compile(r'([()!^"<>&|])')
_UUID = re.compile(r"[A-Za-z0-9-]+")


def script(recipe: Recipe) -> str:
    """The file. Raises InputError for what cmd cannot hold: a line break in a word, a quote in a file's name."""
    check_words(recipe, lines=False, raw=False)
    command, needs = recipe.command, recipe.needs
    checks = [*_port(recipe), *(line for item in needs.files for line in _file(item))]
    for gpu in needs.gpus:
        if gpu.need_bytes:
            known = gpu.uuid if gpu.uuid and _UUID.fullmatch(gpu.uuid) else ""
            checks += [
                f'set "index={gpu.index}"',
                f'set "uuid={known}"',
                *_sizes(gpu.need_bytes, gpu.planned_free_bytes),
                "call :check_gpu",
            ]
    if needs.ram_need_bytes:
        fatal = 0 if needs.pageable else 1
        checks += [
            *_sizes(needs.ram_need_bytes, needs.planned_ram_bytes),
            f'set "fatal={fatal}"',
            "call :check_ram",
        ]
    filled = {
        "HEADING": f"rem {recipe.heading.replace('%', '%%')}\n" if recipe.heading else "",
        "ENGINE": command.engine,
        "BUILD": str(command.build),
        "EXECUTABLE": _in_quotes(command.argv[0]),
        "ARGUMENTS": " ^\n    ".join(" ".join(map(quote, line)) for line in by_line(command.argv[1:])),
        "CHECKS": "\n".join(checks),
        "EXPORTS": "".join(f'set "{name}={_in_quotes(value)}"\n' for name, value in command.env.items()),
    }
    template = (Path(__file__).parent / "batch.cmd.in").read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda match: filled[match[1]], template)


def quote(word: str) -> str:
    """A word for a program that splits its line as CommandLineToArgvW does, safe from cmd.

    Where the word holds a quote itself, every sign is escaped so that cmd sees no quoted text at all.
    """
    if word and not re.search(r'[\s"()!^<>&|,;=%]', word):
        return word
    text = re.sub(r'(\\*)"', r'\1\1\\"', word)
    whole = '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'
    if '"' in word:
        whole = _SPECIAL.sub(r"^\1", whole)
    return whole.replace("%", "%%")


def _in_quotes(text: str) -> str:
    """A value that stands between quotes already."""
    if '"' in text:
        raise InputError(f"a batch file cannot hold a quote in {text!r}")
    return text.replace("%", "%%")


def _file(item: ModelFile) -> list[str]:
    return [f'set "file={_in_quotes(item.path)}"', f'set "size={item.size_bytes}"', "call :check_file"]


def _sizes(need_bytes: int, planned_bytes: int) -> list[str]:
    """In MiB: cmd counts in 32 bits."""
    return [f'set "need={-(-need_bytes // MIB)}"', f'set "planned={planned_bytes // MIB}"']


def _port(recipe: Recipe) -> list[str]:
    lines = []
    if recipe.port.isdigit():
        lines += [
            f'netstat -an -p TCP 2>nul | findstr /r /c:":{recipe.port} *[^ ]*:0 " >nul',
            "if not errorlevel 1 (",
            f"    >&2 echo plan-llama: port {recipe.port}: another program listens on it; plan with another --port",
            "    set /a problems+=1",
            ")",
        ]
    if not recipe.is_safe:
        lines += [
            "if not defined LLAMA_API_KEY (",
            "    >&2 echo plan-llama: other machines would be let in without a key; set LLAMA_API_KEY",
            "    set /a problems+=1",
            ")",
        ]
    return lines
