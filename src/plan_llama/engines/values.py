"""Whether llama.cpp's parser accepts a value, by the conversions that it calls (common/arg.cpp, b11434)."""

from __future__ import annotations

import re

from plan_llama.engines.arguments import Argument

_INT = re.compile(r"\s*([+-]?\d+)")
_FLOAT = re.compile(r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?|nan)", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:[+*](\d+))?)?(?:,|$)")
_SIGNED_RANGE = re.compile(r"(-?\d+)(?:-(\d+)(?:[+*](\d+))?)?(?:,|$)")

TRUE_WORDS = ("on", "enabled", "true", "1")
FALSE_WORDS = ("off", "disabled", "false", "0")
AUTO_WORDS = ("auto", "-1")


def to_int(text: str) -> int | None:
    """What std::stoi makes of a text: leading digits count, the rest is not read; None where it throws."""
    match = _INT.match(text)
    if not match:
        return None
    number = int(match[1]) if len(match[1]) < 20 else 1 << 63  # bounded work for absurd input
    return number if -(1 << 31) <= number < 1 << 31 else None


def to_float(text: str) -> float | None:
    """What std::stof makes of a text; None where it throws."""
    match = _FLOAT.match(text)
    return float(match[0][:400]) if match else None


def trailing(text: str) -> str:
    """What stoi leaves unread of a number: `k` of `32k`. Empty where all was read."""
    match = _INT.match(text)
    return text[match.end() :] if match else ""


def ranges(text: str) -> tuple[int, ...] | None:
    """llama-bench's lists and ranges (`512`, `128,256`, `0-2048+512`, `1-64*2`); None where it refuses.

    Of a range only the first and the last possible value are returned: nothing here needs those between.
    """
    pattern = _SIGNED_RANGE if "-" in text[:1] else _RANGE
    found: list[int] = []
    place = 0
    while place < len(text):
        match = pattern.match(text, place)
        if not match:
            return None
        found += [int(number[:18]) for number in match.group(1, 2) if number]
        place = match.end()
    return tuple(found)


def shown(argument: Argument) -> str:
    """What a value may be, for a message."""
    if argument.choices and "on" in argument.choices:
        return "on, off or auto" if "auto" in argument.choices else "on or off"
    words = ", ".join(word for word in argument.choices if word)
    if argument.kind in ("choice", "choices"):
        return f"one of {words}"
    if argument.kind in ("int", "uint", "ranges", "uints"):
        number = "a whole number"
        if argument.minimum is not None:
            number += f" of at least {argument.minimum}"
        if argument.maximum is not None:
            number += f" and at most {argument.maximum}"
        return f"{number}, or {words}" if words else number
    return "a number" if argument.kind in ("float", "floats") else (argument.values or ("a value",))[0]


def problem(argument: Argument, values: tuple[str, ...]) -> str | None:
    """Why the parser refuses these values, or None where it takes them."""
    if argument.kind == "strings":
        numbers = "--control-vector-layer-range" in argument.names
        wrong = numbers and any(to_int(value) is None for value in values)
        return "both values must be whole numbers" if wrong else None
    value = values[0]
    accepted = _accepts(argument, value)
    return None if accepted else f"expected {shown(argument)}, found '{value}'"


def _accepts(argument: Argument, value: str) -> bool:
    kind = argument.kind
    if kind == "choice" or (argument.choices and kind == "int" and value in argument.choices):
        return value in argument.choices
    if kind == "choices":
        return all(word in argument.choices for word in value.split(","))
    if kind == "int":
        number = to_int(value)
        return number is not None and _in_bounds(argument, number)
    if kind in ("uint", "float"):
        return _INT.match(value) is not None if kind == "uint" else to_float(value) is not None
    if kind in ("floats", "uints"):
        convert = _INT.match if kind == "uints" else to_float
        return all(convert(part) is not None for part in re.split(r"[,/]+", value))
    if kind == "ranges":
        found = ranges(value)
        return found is not None and (argument.minimum is None or not value.startswith("-"))
    if kind == "devices":
        return bool(value)
    if "--override-tensor" in argument.names:
        return all("=" in part for part in re.split(r"[,;]", value) if part)
    return True


def _in_bounds(argument: Argument, number: int) -> bool:
    below = argument.minimum is not None and number < argument.minimum
    above = argument.maximum is not None and number > argument.maximum
    return not (below or above or number in argument.refused)
