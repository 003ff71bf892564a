"""Sizes that depend on the batch: numbers that remember how they came about.

A graph is built once with `Quantity` objects in place of tokens and cells. Sums and products of them stay polynomials
of those variables, so that every size can be worked out again for another batch. A decision that the building code
takes on the way (a comparison, a remainder) is kept as a guard: the recording holds for every batch that would decide
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

Monomial = tuple[int, ...]  # the variables that are multiplied, by number, ascending; () is the constant
Terms = dict[Monomial, "int | Fraction"]
Polynomial = tuple[tuple[Monomial, "int | Fraction"], ...]


class Guards:
    """What was decided about the variables while something was built for one set of values."""

    def __init__(self, values: Sequence[int]) -> None:
        self.values = tuple(values)
        self.signs: dict[Polynomial, int] = {}
        self.remainders: dict[tuple[Polynomial, int], int] = {}

    def variable(self, number: int) -> int:
        """A variable. It is typed as what it stands for: the code that builds with it knows ints only."""
        return cast("int", Quantity({(number,): 1}, self.values[number], self))

    def hold(self, values: Sequence[int]) -> bool:
        """Whether the same would be decided for other values."""
        if values == self.values:
            return True
        return all(_sign(evaluate(terms, values)) == sign for terms, sign in self.signs.items()) and all(
            evaluate(terms, values) % divisor == rest for (terms, divisor), rest in self.remainders.items()
        )


def _sign(value: int | Fraction) -> int:
    return (value > 0) - (value < 0)


def evaluate(terms: Polynomial, values: Sequence[int]) -> int:
    """A polynomial's value."""
    total: int | Fraction = 0
    for monomial, factor in terms:
        part: int | Fraction = factor
        for number in monomial:
            part *= values[number]
        total += part
    return int(total)


class Quantity:
    """A polynomial of the variables with its value for the batch at hand. Behaves as an int."""

    __slots__ = ("guards", "terms", "value")
    __hash__ = None  # type: ignore[assignment]  # a key would hide which values it stands for

    def __init__(self, terms: Terms, value: int, guards: Guards) -> None:
        self.terms = terms
        self.value = value
        self.guards = guards

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other: int | Quantity) -> Quantity | int:
        if isinstance(other, Quantity):
            terms = dict(self.terms)
            for monomial, factor in other.terms.items():
                total = terms.get(monomial, 0) + factor
                if total:
                    terms[monomial] = total
                else:
                    del terms[monomial]
            return self._made(terms, self.value + other.value)
        if not other:
            return self
        terms = dict(self.terms)
        total = terms.get((), 0) + other
        if total:
            terms[()] = total
        else:
            del terms[()]
        return self._made(terms, self.value + other)

    __radd__ = __add__

    def __neg__(self) -> Quantity:
        return Quantity(
            {monomial: -factor for monomial, factor in self.terms.items()}, -self.value, self.guards
        )

    def __sub__(self, other: int | Quantity) -> Quantity | int:
        return self + -other

    def __rsub__(self, other: int) -> Quantity | int:
        return -self + other

    def __mul__(self, other: int | Quantity) -> Quantity | int:
        if isinstance(other, Quantity):
            terms: Terms = {}
            for mine, factor in self.terms.items():
                for theirs, by in other.terms.items():
                    monomial = tuple(sorted(mine + theirs)) if mine and theirs else mine or theirs
                    total = terms.get(monomial, 0) + factor * by
                    terms[monomial] = total
            return self._made({m: f for m, f in terms.items() if f}, self.value * other.value)
        if other == 1:
            return self
        if not other:
            return 0
        return Quantity({m: f * other for m, f in self.terms.items()}, self.value * other, self.guards)

    __rmul__ = __mul__

    def _made(self, terms: Terms, value: int) -> Quantity | int:
        """A constant is a plain int again."""
        if not terms or (len(terms) == 1 and () in terms):
            return value
        return Quantity(terms, value, self.guards)

    def __mod__(self, divisor: int | Quantity) -> int:
        if isinstance(divisor, Quantity):
            return self.fixed() % divisor.fixed()
        if all(isinstance(factor, int) and not factor % divisor for factor in self.terms.values()):
            return 0
        rest = self.value % divisor
        self.guards.remainders[tuple(self.terms.items()), divisor] = rest
        return rest

    def __rmod__(self, other: int) -> int:
        return other % self.fixed()

    def __floordiv__(self, divisor: int | Quantity) -> Quantity | int:
        if isinstance(divisor, Quantity):
            if len(divisor.terms) == 1:
                ((monomial, factor),) = divisor.terms.items()
                if factor == 1 and len(monomial) == 1 and all(monomial[0] in m for m in self.terms):
                    return self._made(
                        {_without(m, monomial[0]): f for m, f in self.terms.items()},
                        self.value // divisor.value,
                    )
            return self.fixed() // divisor.fixed()
        if divisor == 1:
            return self
        rest = self % divisor
        whole = self - rest if rest else self
        if not isinstance(whole, Quantity):
            return whole // divisor
        return Quantity(
            {
                m: f // divisor if isinstance(f, int) and not f % divisor else _ratio(f, divisor)
                for m, f in whole.terms.items()
            },
            whole.value // divisor,
            self.guards,
        )

    def __rfloordiv__(self, other: int) -> int:
        return other // self.fixed()

    # -- decisions --------------------------------------------------------------------------------------------------

    def _compare(self, other: object) -> int:
        """The sign of the difference, kept as a guard unless it is the same for all values."""
        if isinstance(other, Quantity) and self.terms == other.terms:
            return 0
        if not isinstance(other, int | Quantity):
            raise TypeError(f"a size is compared with {other!r}")
        difference = self - other
        if not isinstance(difference, Quantity):
            return _sign(difference)
        factors = difference.terms.values()
        if all(factor > 0 for factor in factors) or all(factor < 0 for factor in factors):
            return 1 if difference.value > 0 else -1  # variables are positive, so nothing was decided
        sign = _sign(difference.value)
        self.guards.signs[tuple(difference.terms.items())] = sign
        return sign

    def __eq__(self, other: object) -> bool:
        return self._compare(other) == 0

    def __lt__(self, other: object) -> bool:
        return self._compare(other) < 0

    def __le__(self, other: object) -> bool:
        return self._compare(other) <= 0

    def __gt__(self, other: object) -> bool:
        return self._compare(other) > 0

    def __ge__(self, other: object) -> bool:
        return self._compare(other) >= 0

    def __bool__(self) -> bool:
        return self._compare(0) != 0

    def fixed(self) -> int:
        """The value, where only it will do: the recording then holds for this value alone."""
        self._compare(self.value)
        return self.value

    __index__ = __int__ = fixed


def _without(monomial: Monomial, number: int) -> Monomial:
    at = monomial.index(number)
    return monomial[:at] + monomial[at + 1 :]


def _ratio(factor: int | Fraction, divisor: int) -> int | Fraction:
    made = Fraction(factor) / divisor
    return int(made) if made.denominator == 1 else made


Size = int | Quantity


def value_of(size: Size) -> int:
    """The number that a size is for the batch at hand."""
    return size.value if isinstance(size, Quantity) else size


def terms_of(size: Size) -> Polynomial:
    """A size as a polynomial."""
    return tuple(sorted(size.terms.items())) if isinstance(size, Quantity) else (((), size),)
