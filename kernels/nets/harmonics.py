"""Real spherical harmonics of places on Earth, in the three ways in which SatCLIP's features can be computed.

Russwurm, M. et al. (2024): Geographic Location Encoding with Spherical Harmonics and Sinusoidal Representation
Networks, https://arxiv.org/abs/2310.06743. Features are ordered by degree l = 0, 1, ..., then by order m = -l, ..., l;
negative orders are sines. The longitude is counted from the antimeridian, the polar angle from the south pole.

- ``analytic``: the published default. Polynomials in the cosine of the polar angle, written out with 15 digits: no
  Condon-Shortley sign, and orders of zero are pi times the orthonormal ones. Towards the poles the printed digits
  cancel: at degree 39 an error of 1e-9 at 20 degrees of latitude grows to 1e-2 at 60 and 0.6 at the poles. Models that
  were trained with it were trained with this error, so it is reproduced.
- ``exact``: the same functions without that error.
- ``closed-form``: orthonormal, with the Condon-Shortley sign.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

__all__ = ["HARMONICS", "Harmonics", "features"]

Harmonics = Literal["analytic", "closed-form", "exact"]
HARMONICS: tuple[Harmonics, ...] = ("analytic", "closed-form", "exact")


def features(lonlat: Tensor, degrees: int, kind: Harmonics) -> Tensor:
    """Return the harmonics ``[N, degrees ** 2]`` float64 of places.

    Parameters
    ----------
    lonlat
        Longitude and latitude in degrees, ``[N, 2]`` float64.
    degrees
        Number of degrees l, from 0 on.
    kind
        One of `HARMONICS`.
    """
    phi = torch.deg2rad(lonlat[:, 0] + 180)
    cosine = torch.cos(torch.deg2rad(lonlat[:, 1] + 90))
    table = _printed(cosine, degrees) if kind == "analytic" else _recurred(cosine, degrees)
    if kind == "exact":
        table[:, :, 0] *= math.pi
    if kind == "closed-form":
        table = table * (1 - 2 * (torch.arange(degrees, device=phi.device) % 2)).to(phi.dtype)
    return _with_longitude(table, phi)


def _with_longitude(table: Tensor, phi: Tensor) -> Tensor:
    """Multiply ``[N, l, m]`` of orders from 0 on with cosines and sines of the longitude, and lay all out in a row."""
    degrees = table.shape[1]
    angles = phi[:, None] * torch.arange(degrees, device=phi.device, dtype=phi.dtype)
    even, odd = table * torch.cos(angles)[:, None], table * torch.sin(angles)[:, None]
    rows = [
        torch.cat([odd[:, degree, 1 : degree + 1].flip(1), even[:, degree, : degree + 1]], dim=1)
        for degree in range(degrees)
    ]
    return torch.cat(rows, dim=1)


def _norm(degree: int, order: int) -> float:
    """The factor that makes a real harmonic orthonormal, of any size of the factorials."""
    ratio = Fraction(math.factorial(degree - order), math.factorial(degree + order)) * (2 * degree + 1)
    return math.sqrt(ratio / 4 * (1 if order == 0 else 2)) / math.sqrt(math.pi)


def _recurred(cosine: Tensor, degrees: int) -> Tensor:
    """Orthonormal polynomials ``[N, l, m]`` without sign, by the recurrence in the degree, which loses no digits."""
    sine = torch.sqrt((1 - cosine) * (1 + cosine))
    table = cosine.new_zeros(len(cosine), degrees, degrees)
    for m in range(degrees):
        if m == 0:
            table[:, 0, 0] = math.sqrt(1 / (4 * math.pi))
        else:
            factor = math.sqrt((2 * m + 1) / (2 * m)) * (math.sqrt(2) if m == 1 else 1)
            table[:, m, m] = table[:, m - 1, m - 1] * factor * sine
        for k in range(m + 1, degrees):
            a = math.sqrt((4 * k * k - 1) / (k * k - m * m))
            b = math.sqrt(((k - 1) ** 2 - m * m) / (4 * (k - 1) ** 2 - 1))
            before = table[:, k - 2, m] if k > m + 1 else 0.0
            table[:, k, m] = a * (cosine * table[:, k - 1, m] - b * before)
    return table


_PRINTED = Context(prec=15, rounding=ROUND_HALF_UP)


def _digits(value: float) -> float:
    """The number that is read back where ``value`` was printed with 15 digits, halves away from zero."""
    return float(_PRINTED.plus(Decimal(value)))


@lru_cache(maxsize=4)
def _polynomials(degrees: int) -> tuple[Tensor, Tensor]:
    """The printed numbers: factors ``[l, m]``, and coefficients ``[l, m, terms]`` from the highest power down.

    The m-th derivative of the Legendre polynomial of degree l has the powers l - m, l - m - 2, ... Its coefficients are
    exact fractions here and printed as floats; orders of zero have their factor multiplied in.
    """
    factors = torch.zeros(degrees, degrees, dtype=torch.float64)
    terms = torch.zeros(degrees, degrees, degrees // 2 + 1, dtype=torch.float64)
    for degree in range(degrees):
        for order in range(degree + 1):
            norm = _norm(degree, order) if order else math.sqrt((2 * degree + 1) / 4) * math.sqrt(math.pi)
            factors[degree, order] = _digits(norm) if order else 1.0
            for k in range((degree - order) // 2 + 1):
                power = degree - 2 * k
                whole = math.comb(degree, k) * math.comb(2 * degree - 2 * k, degree) * math.perm(power, order)
                value = float(Fraction((-1) ** k * whole, 2**degree))
                terms[degree, order, k] = _digits(value if order else norm * value)
    return factors, terms


def _printed(cosine: Tensor, degrees: int) -> Tensor:
    """The printed polynomials ``[N, l, m]``, their terms added from the highest power down."""
    factors, terms = (made.to(cosine.device) for made in _polynomials(degrees))
    orders = torch.arange(degrees, device=cosine.device)
    powers = torch.stack([cosine**power for power in range(degrees)], dim=1)
    sines = torch.stack([(1.0 - cosine**2) ** (order / 2) for order in range(degrees)], dim=1)
    total = cosine.new_zeros(len(cosine), degrees, degrees)
    for k in range(terms.shape[2]):
        exponents = orders[:, None] - orders[None, :] - 2 * k  # [l, m]
        total = total + terms[None, :, :, k] * powers[:, exponents.clamp(min=0)]
    return factors * sines[:, None, :] * total
