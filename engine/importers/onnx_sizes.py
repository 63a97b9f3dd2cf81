"""Sizes that depend on the image: exact arithmetic over a model's unknown dimensions.

An exported network computes shapes at run time (Shape, Gather, Mul, Concat, Reshape). Folding that arithmetic for every
image size at once needs numbers such as 2·H or floor(H / 2); a `Size` is one, a polynomial with rational coefficients.
Two sizes are equal for every image when their polynomials are, so a scale read off two of them is never a guess.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor as floor_number

from tilefuse.errors import ModelError

_MAX_TERMS = 64
_MAX_DEPTH = 32

_fresh = itertools.count()


@dataclass(frozen=True)
class Floor:
    """floor(inner), where no simpler form is known."""

    inner: Size
    depth: int

    def __str__(self) -> str:
        return f"floor({self.inner})"


Atom = str | Floor
Monomial = tuple[Atom, ...]


@dataclass(frozen=True)
class Size:
    """A sum of products of unknown dimensions (each an integer of at least 1); never a plain number.

    Raises:
        ModelError: a result is outside what polynomials and floors express, or grows without bound.
    """

    terms: tuple[tuple[Monomial, Fraction], ...]

    def __add__(self, other: Number) -> Number:
        return _collect([*self.terms, *_terms(other)])

    def __sub__(self, other: Number) -> Number:
        return self + _scale(other, Fraction(-1))

    def __rsub__(self, other: Number) -> Number:
        return _scale(self, Fraction(-1)) + other

    def __mul__(self, other: Number) -> Number:
        products = [(_sorted(a + b), x * y) for a, x in self.terms for b, y in _terms(other)]
        return _collect(products)

    def __neg__(self) -> Number:
        return _scale(self, Fraction(-1))

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Number:
        return divide(self, other)

    def __rtruediv__(self, other: Number) -> Number:
        return divide(other, self)

    def __floordiv__(self, other: Number) -> Number:
        return floor(divide(self, other))

    def __rfloordiv__(self, other: Number) -> Number:
        return floor(divide(other, self))

    def __mod__(self, other: Number) -> Number:
        return self - (self // other) * other

    def __rmod__(self, other: Number) -> Number:
        return other - (other // self) * self

    def __str__(self) -> str:
        return " + ".join(
            "·".join(([str(k)] if k != 1 or not atoms else []) + [str(a) for a in atoms]) for atoms, k in self.terms
        )


Dim = int | Size
Number = int | float | Fraction | Size


def symbol(name: str) -> Size:
    """Name an unknown dimension."""
    return Size((((name,), Fraction(1)),))


def unknown() -> Size:
    """Make a dimension equal to no other."""
    return symbol(f"?{next(_fresh)}")


def divide(a: Number, b: Number) -> Number:
    """Divide exactly; a size divides another when the quotient is a size or a number for every image."""
    if not isinstance(b, Size):
        if b == 0:
            raise ModelError("the model's shape arithmetic divides by zero")
        return _scale(a, 1 / Fraction(b))
    (atoms, k), *more = b.terms
    if isinstance(a, Size) and more:
        ratio = dict(a.terms).get(atoms, Fraction(0)) / k
        if ratio and _scale(b, ratio) == a:
            return _collect([((), ratio)])
    elif isinstance(a, Size) and all(_without(monomial, atoms) is not None for monomial, _ in a.terms):
        return _collect([(_without(monomial, atoms) or (), x / k) for monomial, x in a.terms])
    raise ModelError(f"the model divides ({a}) by ({b}), which depends on the size of the image")


def floor(a: Number) -> Number:
    """Round down."""
    if not isinstance(a, Size):
        return floor_number(a)
    whole = [(atoms, Fraction(floor_number(k))) for atoms, k in a.terms]
    rest = _collect([*a.terms, *((atoms, -k) for atoms, k in whole)])
    if not isinstance(rest, Size):
        return _collect(whole)
    depth = 1 + max((atom.depth for atoms, _ in rest.terms for atom in atoms if isinstance(atom, Floor)), default=0)
    if depth > _MAX_DEPTH:
        raise ModelError("the model's shape arithmetic is too deeply nested")
    return _collect([*whole, ((Floor(rest, depth),), Fraction(1))])


def ceil(a: Number) -> Number:
    """Round up."""
    return -floor(-a)


def least(a: Number) -> Fraction | None:
    """Bound a size from below over all images, or None when no bound is known."""
    if not isinstance(a, Size):
        return Fraction(a)
    if any(k < 0 for atoms, k in a.terms if atoms):
        return None
    total = Fraction(0)
    for atoms, k in a.terms:
        for atom in atoms:
            bound = Fraction(1) if isinstance(atom, str) else least(atom.inner)
            if bound is None or bound < 0:
                return None
            k *= floor_number(bound)
        total += k
    return total


def compare(a: Number, b: Number) -> int:
    """Give the sign of a - b where it is the same for every image.

    Raises:
        ModelError: it is not.
    """
    difference = a - b
    if not isinstance(difference, Size):
        return (difference > 0) - (difference < 0)
    low, high = least(difference), least(-difference)
    if low is not None and low > 0:
        return 1
    if high is not None and high > 0:
        return -1
    raise ModelError(f"the model compares ({a}) with ({b}), which depends on the size of the image")


def _terms(a: Number) -> Iterable[tuple[Monomial, Fraction]]:
    if isinstance(a, Size):
        return a.terms
    try:
        return [((), Fraction(a))]
    except (ValueError, OverflowError) as error:
        raise ModelError(f"the model's shape arithmetic meets {a}") from error


def _scale(a: Number, k: Fraction) -> Number:
    return _collect([(atoms, x * k) for atoms, x in _terms(a)])


def _collect(terms: Iterable[tuple[Monomial, Fraction]]) -> Number:
    """Add up like terms; the result is a plain number when no unknown is left."""
    table: dict[Monomial, Fraction] = {}
    for atoms, k in terms:
        table[atoms] = table.get(atoms, Fraction(0)) + k
    table = {atoms: k for atoms, k in table.items() if k}
    if len(table) > _MAX_TERMS or any(len(atoms) > _MAX_TERMS for atoms in table):
        raise ModelError("the model's shape arithmetic is too involved")
    if not any(table):
        number = table.get((), Fraction(0))
        return int(number) if number.denominator == 1 else number
    return Size(_ordered(table))


def _ordered(table: Mapping[Monomial, Fraction]) -> tuple[tuple[Monomial, Fraction], ...]:
    return tuple(sorted(table.items(), key=lambda term: [str(atom) for atom in term[0]]))


def _sorted(atoms: Monomial) -> Monomial:
    return tuple(sorted(atoms, key=str))


def _without(monomial: Monomial, atoms: Monomial) -> Monomial | None:
    """Cancel a product of atoms from a monomial, or None when it does not hold them all."""
    rest = list(monomial)
    for atom in atoms:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)
