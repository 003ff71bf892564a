"""What every launcher is made from: the command, what must hold when it starts, and smaller contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plan_llama.engines.arguments import ENGINE
from plan_llama.engines.contradictions import is_loopback
from plan_llama.engines.launch import LaunchCommand
from plan_llama.errors import InputError
from plan_llama.hardware.types import Backend

LOOPBACK = "127.0.0.1"
NAME = "llama-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file that must be there in full; 0 bytes where its size is not known."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNeed:
    """What the plan takes on a card, and what was free then. Matched by UUID, PCI address or index."""

    index: int  # among the cards of its vendor, in PCI order
    name: str
    backend: Backend
    uuid: str | None = None
    pci_bus_id: str | None = None
    need_bytes: int  # of its own memory: 0 of memory that it shares
    planned_free_bytes: int
    used: bool = True  # whether anything is placed there


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchNeeds:
    """Everything that a launcher checks. With `pageable` (a mapped file) too little RAM is no failure."""

    files: tuple[ModelFile, ...]
    gpus: tuple[GpuNeed, ...] = ()
    ram_need_bytes: int = 0
    planned_ram_bytes: int = 0
    pageable: bool = False
    locked_bytes: int = 0  # 0: the load mode locks nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallerContext:
    """The same placement with fewer tokens: its command, and what it needs on each card and of the RAM."""

    context: int  # of one conversation
    argv: tuple[str, ...]
    gpu_need_bytes: tuple[int, ...]
    ram_need_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A plan, ready to be written down. `context` is the command's; `smaller` are the next ones, largest first."""

    command: LaunchCommand
    needs: LaunchNeeds
    title: str = ""
    context: int = 0
    smaller: tuple[SmallerContext, ...] = ()

    @property
    def heading(self) -> str:
        """The title as one printable line."""
        return "".join(c if c.isprintable() else "?" for c in self.title)

    @property
    def host(self) -> str:
        """The address that the command listens on."""
        return argument(self.command.argv, "--host", LOOPBACK)

    @property
    def is_safe(self) -> bool:
        """Whether only this machine is let in, or a key is asked for."""
        return is_loopback(self.host) or self.asks_key

    @property
    def asks_key(self) -> bool:
        """Whether the command names a key."""
        return bool({"--api-key", "--api-key-file"} & set(self.command.argv))

    @property
    def port(self) -> str:
        """The port that the command listens on."""
        return argument(self.command.argv, "--port", "8080")


def by_line(words: Sequence[str]) -> list[list[str]]:
    """Arguments with their values, a line each."""
    lines: list[list[str]] = []
    for word in words:
        if lines and not (word.startswith("-") and not word[1:2].isdigit()):
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def argument(argv: Sequence[str], flag: str, default: str) -> str:
    """The last value of an argument."""
    places = [place for place, word in enumerate(argv[:-1]) if word == flag]
    return argv[places[-1] + 1] if places else default


def only_llama_cpp(recipe: Recipe, what: str) -> None:
    """Raises InputError for another engine than llama.cpp, which `what` would start instead."""
    if recipe.command.engine != ENGINE:
        raise InputError(f"{what} is llama.cpp's, not {recipe.command.engine}'s", hint="--launcher sh")


def check_words(recipe: Recipe, *, lines: bool = True, raw: bool = True) -> None:
    """Raises InputError for a word that the format cannot hold.

    None holds a NUL; without `lines` none with a line break, without `raw` none whose bytes are no UTF-8.
    """
    command = recipe.command
    words = [*command.argv, *command.env.values(), *(item.path for item in recipe.needs.files)]
    for word in words:
        if "\0" in word:
            raise InputError("a launcher cannot hold a word with a NUL character")
        if not raw and any("\udc80" <= c <= "\udcff" for c in word):
            raise InputError(f"this launcher cannot hold a name that is not UTF-8: {word!r}")
        if not lines and ("\n" in word or "\r" in word):
            raise InputError(f"this launcher cannot hold a word with a line break: {word!r}")
