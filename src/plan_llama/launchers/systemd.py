r"""A systemd unit that starts the planned command.

Its words are quoted as systemd.syntax(7) and systemd.service(5) read them: C escapes, `$$` and `%%`.
"""

from __future__ import annotations

from pathlib import Path

from plan_llama.launchers import posix
from plan_llama.launchers.types import NAME, Recipe, by_line, check_words

FILE_NAME = f"{NAME}.service"
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def unit(recipe: Recipe, folder: Path, *, checked: bool) -> str:
    """The unit. `checked`: the shell launcher lies in the same folder, and its checks are made first.

    Raises InputError for a word with a NUL character.
    """
    check_words(recipe)
    command = recipe.command
    script = folder.absolute() / posix.FILE_NAME
    lines = [
        f"# Written by plan-llama: starts {command.engine} b{command.build} as planned.",
        "# As a user: put it into ~/.config/systemd/user and run",
        f"#   systemctl --user daemon-reload && systemctl --user enable --now {NAME}",
        "[Unit]",
        "Description=" + (f"{NAME}: {recipe.heading}" if recipe.heading else NAME).replace("%", "%%"),
        "After=network.target",
        "",
        "[Service]",
        *(f"Environment={quote(f'{name}={value}', variables=False)}" for name, value in command.env.items()),
    ]
    if checked:
        lines += [
            "# files, free memory, cards, port and build; what it finds is in the journal",
            f"ExecStartPre=/bin/sh {quote(str(script))} --check",
        ]
    lines += [
        "ExecStart=" + " \\\n    ".join(" ".join(map(quote, line)) for line in by_line(command.argv)),
        "LimitMEMLOCK=infinity",
        "Restart=on-failure",
        "RestartSec=10",
        "# a large model takes minutes to be read",
        "TimeoutStartSec=infinity",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines)


def quote(word: str, *, variables: bool = True) -> str:
    """A word of a command line; with `variables` False one where `$` is no sign of its own (Environment=)."""
    text = word.replace("%", "%%")
    if variables:
        text = text.replace("$", "$$")
    plain = text and all(c.isalnum() or c in "/._-+=:,@%$" for c in text) and text.isascii()
    if plain:
        return text
    return (
        '"'
        + "".join(_ESCAPES.get(c, c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}") for c in text)
        + '"'
    )
