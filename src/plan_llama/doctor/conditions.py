"""Conditions of rules on facts: `offloaded < layers`, `mapped_bytes > 0.9 ram_free_bytes`, `architecture is glm-dsa`.

A condition on a fact that is not known is not met. `a` to `e` are the numbers of the line that was matched.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plan_llama.doctor.evidence import Fact, Start, Value
from plan_llama.errors import ProfileError

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_NUMBER = r"\d+(?:\.\d+)?"
_COMPARISON = re.compile(
    rf"(?P<left>[a-z_0-9]+) (?P<op><=|>=|==|!=|<|>) (?:(?P<factor>{_NUMBER}) )?(?P<right>[a-z_][a-z_0-9]*|{_NUMBER})"
)
_WORDS = re.compile(r"(?P<left>[a-z_0-9]+) (?P<op>is not|is|has not|has) (?P<right>.+)")
_PLAIN = re.compile(r"(?P<op>not |unknown |known )?(?P<left>[a-z_0-9]+)")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. `right` is a fact's name, a number, or words of which one must be there."""

    text: str
    left: str
    op: str
    right: str = ""
    factor: float = 1.0

    def met(self, start: Start, numbers: Mapping[str, str], observed: Mapping[str, Fact]) -> bool:
        """Whether it holds."""
        value = _value(self.left, start, numbers, observed)
        if self.op in ("known", "unknown"):
            return (value is not None) is (self.op == "known")
        if self.op in _COMPARE:
            other = _value(self.right, start, numbers, observed)
            if not isinstance(value, int | float) or not isinstance(other, int | float):
                return False
            return _COMPARE[self.op](value, self.factor * other)
        if value is None:
            return False
        if self.op in ("true", "false"):
            return bool(value) is (self.op == "true")
        words = self.right.lower().split("|")
        text = str(value).lower()
        inside = any(word in text for word in words) if "has" in self.op else text in words
        return inside is not ("not" in self.op)


def condition(text: str, where: str) -> Condition:
    """Raises ProfileError for what is none."""
    if found := _COMPARISON.fullmatch(text):
        return Condition(text, found["left"], found["op"], found["right"], float(found["factor"] or 1))
    if found := _WORDS.fullmatch(text):
        return Condition(text, found["left"], found["op"], found["right"])
    if found := _PLAIN.fullmatch(text):
        op = {None: "true", "not ": "false"}.get(found["op"], (found["op"] or "").strip())
        return Condition(text, found["left"], op)
    raise ProfileError(f"{where}: '{text}' is no condition", hint="such as 'offloaded < layers'")


def _value(name: str, start: Start, numbers: Mapping[str, str], observed: Mapping[str, Fact]) -> Value | None:
    if re.fullmatch(_NUMBER, name):
        return float(name)
    if name in numbers:
        try:
            number = float(numbers[name].replace(",", ""))
            return int(number) if number.is_integer() else number
        except ValueError:
            return numbers[name]
    if name in observed:
        return observed[name].value
    return start.get(name)
