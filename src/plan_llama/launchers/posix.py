"""A POSIX shell script that starts the planned command, after a look at what changed since the plan."""

from __future__ import annotations

import ipaddress
import re
import shlex
from pathlib import Path

from plan_llama.launchers.types import GpuNeed, ModelFile, Recipe, by_line, check_words

FILE_NAME = "start-llama-server.sh"


def shell_launcher(recipe: Recipe) -> str:
    """The script. `--check` as its first argument only checks; all other arguments go to the server.

    Raises InputError for a word that no program can be given (one with a NUL character).
    """
    check_words(recipe)
    command, needs = recipe.command, recipe.needs
    exports = "".join(f"{name}={shlex.quote(value)}\nexport {name}\n" for name, value in command.env.items())
    filled = {
        "HEADING": f"# {recipe.heading}\n" if recipe.heading else "",
        "ENGINE": command.engine,
        "BUILD": str(command.build),
        "EXPORTS": exports,
        "EXECUTABLE": shlex.quote(command.argv[0]),
        "NEEDS": "".join(_needs(recipe, rung) for rung in range(len(recipe.smaller) + 1)),
        "STARTS": "".join(_start(recipe, rung) for rung in range(len(recipe.smaller) + 1)),
        "RUNGS": str(len(recipe.smaller)),
        "CONTEXT": str(recipe.context),
        "PORT": shlex.quote(recipe.port),
        "HOST": shlex.quote(recipe.host),
        "KEY": "1" if recipe.asks_key else "",
        "LISTENERS": shlex.quote(_listeners(recipe.host)),
        "CHECKS": "\n".join(_file_check(item) for item in needs.files),
        "LOCKS": f"check_memlock {needs.locked_bytes}" if needs.locked_bytes else "",
    }
    template = (Path(__file__).parent / "posix.sh.in").read_text(encoding="utf-8")
    # in one pass: what is filled in (a file's name, say) is never looked at again
    return re.sub(r"@([A-Z]+)@", lambda match: filled[match[1]], template)


def _needs(recipe: Recipe, rung: int) -> str:
    """What one context needs: a branch of the script's `needs`."""
    needs = recipe.needs
    context, ram, gpus = recipe.context, needs.ram_need_bytes, tuple(gpu.need_bytes for gpu in needs.gpus)
    if rung:
        item = recipe.smaller[rung - 1]
        context, ram, gpus = item.context, item.ram_need_bytes, item.gpu_need_bytes
    lines = [f"context={context}"]
    lines += [_gpu_check(gpu, need) for gpu, need in zip(needs.gpus, gpus, strict=True) if need]
    if ram:
        lines.append(f"check_ram {ram} {needs.planned_ram_bytes} {'slow' if needs.pageable else 'fatal'}")
    return f"    {rung})\n" + "".join(f"        {line}\n" for line in lines) + "        ;;\n"


def _start(recipe: Recipe, rung: int) -> str:
    """How one context starts: a branch of the script's `start`."""
    argv = recipe.smaller[rung - 1].argv if rung else recipe.command.argv
    words = " \\\n            ".join(shlex.join(line) for line in by_line(argv[1:]))
    return (
        f'    {rung})\n        exec "$executable" \\\n            {words} \\\n            "$@"\n        ;;\n'
    )


def _file_check(item: ModelFile) -> str:
    return f"check_file {shlex.quote(item.path)} {item.size_bytes}"


def _gpu_check(gpu: GpuNeed, need_bytes: int) -> str:
    words = [gpu.backend, str(gpu.index), gpu.uuid or "", (gpu.pci_bus_id or "").lower(), gpu.name]
    quoted = " ".join(shlex.quote(word) for word in words)
    return f"check_gpu {quoted} {need_bytes} {gpu.planned_free_bytes}"


def _listeners(host: str) -> str:
    """Addresses of /proc/net/tcp and tcp6 that are in the way of a bind to host, or `any` for all."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return "any"
    if not int(address):
        return "any"
    little = address.packed[::-1].hex().upper()
    return f"{little} 00000000 {'0' * 32} 0000000000000000FFFF0000{little}"
