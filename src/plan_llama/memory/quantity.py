"""Sizes that depend on the batch: numbers that remember how they came about.

A graph is built once with `Quantity` objects in place of tokens and cells. Sums and products of them stay polynomials
of those variables, so that every size can be worked out again for another batch. A decision that the building code
takes on the way (a comparison, a remainder) is kept as a guard: the recording holds for every batch that would decide
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # seldom needed, and it brings decimal
    from fractions import Fraction

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
    """A polynomial of the variables with its value for the batch at hand. Behaves as an int.

    It remembers what came of it: every layer of a graph asks for the same sums and products, and gets the same objects.
    """

    __slots__ = (
        *("guards", "terms", "value", "polynomial"),
        *("_negative", "_plus", "_plus_size", "_signs", "_size_signs", "_times", "_times_size", "_wholes"),
    )
    __hash__ = None  # type: ignore[assignment]  # a key would hide which values it stands for

    def __init__(self, terms: Terms, value: int, guards: Guards) -> None:
        self.terms = terms
        self.value = value
        self.guards = guards
        self.polynomial: Polynomial | None = None  # the terms in order, once somebody asked
        self._negative: Quantity | None = None
        # by number, and by the identity of another quantity, which is kept: so none other comes to have it
        self._plus: dict[int, Quantity | int] = {}
        self._times: dict[int, Quantity | int] = {}
        self._wholes: dict[int, Quantity | int] = {}
        self._signs: dict[int, int] = {}
        self._plus_size: dict[int, tuple[Quantity, Quantity | int]] = {}
        self._times_size: dict[int, tuple[Quantity, Quantity | int]] = {}
        self._size_signs: dict[int, tuple[Quantity, int]] = {}

    # -- arithmetic -------------------------------------------------------------------------------------------------

    def __add__(self, other: int | Quantity) -> Quantity | int:
        if isinstance(other, Quantity):
            known = self._plus_size.get(id(other))
            if known is None:
                made = self._sum(other.terms, self.value + other.value)
                known = self._plus_size[id(other)] = other, made
            return known[1]
        if not other:
            return self
        if other not in self._plus:
            self._plus[other] = self._sum({(): other}, self.value + other)
        return self._plus[other]

    def _sum(self, more: Terms, value: int) -> Quantity | int:
        terms = dict(self.terms)
        for monomial, factor in more.items():
            total = terms.get(monomial, 0) + factor
            if total:
                terms[monomial] = total
            else:
                del terms[monomial]
        return self._made(terms, value)

    __radd__ = __add__

    def __neg__(self) -> Quantity:
        if self._negative is None:
            terms = {monomial: -factor for monomial, factor in self.terms.items()}
            self._negative = Quantity(terms, -self.value, self.guards)
            self._negative._negative = self
        return self._negative

    def __sub__(self, other: int | Quantity) -> Quantity | int:
        return self + -other

    def __rsub__(self, other: int) -> Quantity | int:
        return -self + other

    def __mul__(self, other: int | Quantity) -> Quantity | int:
        if isinstance(other, Quantity):
            known = self._times_size.get(id(other))
            if known is None:
                known = self._times_size[id(other)] = other, self._product(other)
            return known[1]
        if other == 1:
            return self
        if not other:
            return 0
        if other not in self._times:
            terms = {monomial: factor * other for monomial, factor in self.terms.items()}
            self._times[other] = Quantity(terms, self.value * other, self.guards)
        return self._times[other]

    def _product(self, other: Quantity) -> Quantity | int:
        terms: Terms = {}
        for mine, factor in self.terms.items():
            for theirs, by in other.terms.items():
                monomial = tuple(sorted(mine + theirs)) if mine and theirs else mine or theirs
                terms[monomial] = terms.get(monomial, 0) + factor * by
        return self._made({m: f for m, f in terms.items() if f}, self.value * other.value)

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
        if divisor not in self._wholes:
            self._wholes[divisor] = self._whole(divisor)
        return self._wholes[divisor]

    def _whole(self, divisor: int) -> Quantity | int:
        """Divided by a number."""
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
        if self is other:
            return 0
        if isinstance(other, Quantity):
            known = self._size_signs.get(id(other))
            if known is None:
                known = self._size_signs[id(other)] = other, self._sign_beside(other)
            return known[1]
        if not isinstance(other, int):
            raise TypeError(f"a size is compared with {other!r}")
        if other not in self._signs:
            self._signs[other] = self._sign_beside(other)
        return self._signs[other]

    def _sign_beside(self, other: int | Quantity) -> int:
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
    from fractions import Fraction

    made = Fraction(factor) / divisor
    return int(made) if made.denominator == 1 else made


Size = int | Quantity


def value_of(size: Size) -> int:
    """The number that a size is for the batch at hand."""
    return size.value if isinstance(size, Quantity) else size


def terms_of(size: Size) -> Polynomial:
    """A size as a polynomial."""
    if not isinstance(size, Quantity):
        return (((), size),)
    if size.polynomial is None:
        size.polynomial = tuple(sorted(size.terms.items()))
    return size.polynomial
