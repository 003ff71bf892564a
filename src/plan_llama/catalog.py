"""Where profiles are, and how one is read. Profiles are data: TOML files, one thing per file or table."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from plan_llama.errors import ProfileError

T = TypeVar("T")
_ENDING = ".toml"


@cache
def root() -> Path:
    """The shipped profiles: inside the installed package, or the checkout's folder in an editable install."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_profiles", package.parents[1] / "profiles"):
        if folder.is_dir():
            return folder
    raise ProfileError(f"no profiles beside {package}", hint="reinstall plan-llama")


def user_root() -> Path:
    """A user's own profiles, which override the shipped ones: $PLAN_LLAMA_PROFILES or the config folder."""
    if given := os.environ.get("PLAN_LLAMA_PROFILES"):
        return Path(given)
    from platformdirs import user_config_path

    return user_config_path("plan-llama") / "profiles"


def files(kind: str) -> dict[str, Path]:
    """All profiles of a kind (`models`, `hardware`, …) by their id, the user's own in front of the shipped ones."""
    found: dict[str, Path] = {}
    for base in (root(), user_root()):
        folder = base / kind
        if folder.is_dir():
            paths = {path.stem: path for path in folder.glob(f"*{_ENDING}")}
            found.update({name: paths[name] for name in sorted(paths)})
    return found


def file(kind: str, name: str) -> Path:
    """One profile of a kind by its id, the user's own in front of the shipped one. Raises KeyError where there is
    none."""
    for base in (user_root(), root()):
        path = base / kind / f"{name}{_ENDING}"
        if path.parent == base / kind and path.is_file():
            return path
    raise KeyError(name)


def load(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises ProfileError naming the file, the place and what to do."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not valid TOML ({error})") from error


class Table:
    """A TOML table whose keys are taken one by one, so that errors name the place and nothing is left unread.

    `Table(load(path), str(path))`; then `t.take("name", str)`, `t.get("year", int)`, `t.tables("gpu")`, `t.done()`.
    """

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self._data = dict(data)
        self.where = where

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value, or None where the key is absent. An int is taken where a float is wanted."""
        if key not in self._data:
            return None
        value = self._data.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = type(value).__name__
            raise ProfileError(f"{self.where}: '{key}' must be {kind.__name__}, found {found}")
        return value

    def take(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise ProfileError(f"{self.where}: required value '{key}' is missing")
        return value

    def table(self, key: str) -> Table:
        """A sub-table; empty where the key is absent."""
        return Table(self.get(key, dict) or {}, f"{self.where} [{key}]")

    def tables(self, key: str) -> Iterator[Table]:
        """The tables of an array of tables."""
        for index, item in enumerate(self.get(key, list) or []):
            if not isinstance(item, dict):
                raise ProfileError(f"{self.where}: '{key}' must be an array of tables")
            yield Table(item, f"{self.where} [{key}[{index}]]")

    def strings(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty where the key is absent."""
        values = self.get(key, list) or []
        if not all(isinstance(value, str) for value in values):
            raise ProfileError(f"{self.where}: '{key}' must be an array of strings")
        return tuple(values)

    def keys(self) -> tuple[str, ...]:
        """The keys that have not been taken yet."""
        return tuple(self._data)

    def done(self) -> None:
        """Raises ProfileError where the table held keys that nobody asked for (a misspelt one, say)."""
        if self._data:
            unknown = ", ".join(sorted(self._data))
            raise ProfileError(f"{self.where}: unknown key {unknown}")
