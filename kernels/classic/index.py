"""Spectral indices by the catalogue and the formulas of spyndex.

Montero, D. et al. (2023): A standardized catalogue of spectral indices to advance the use of remote sensing
in Earth system research, Scientific Data 10, 197; package ``spyndex`` (MIT), extra ``indices``.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec
from .common import band_names, choose, no_weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LETTERS", "spectral_index"]

LETTERS: Mapping[str, str] = {
    "A": "coastal",
    "B": "blue",
    "G": "green",
    "G1": "green05",
    "Y": "yellow",
    "R": "red",
    "RE1": "rededge1",
    "RE2": "rededge2",
    "RE3": "rededge3",
    "N": "nir",
    "N2": "nir08",
    "WV": "nir09",
    "S1": "swir16",
    "S2": "swir22",
    "T": "lwir",
    "T1": "lwir11",
    "T2": "lwir12",
    "HH": "hh",
    "HV": "hv",
    "VV": "vv",
    "VH": "vh",
}
"""spyndex's letter of a band -> the name that the band has in the catalogs of this project."""

_THERMAL = ("T", "T1", "T2")
_RADAR = ("HH", "HV", "VV", "VH")
_KERNELS = ("RBF", "linear", "poly")
_KERNEL_CONSTANTS = {"RBF": ("sigma",), "linear": (), "poly": ("p", "c")}


def _catalogue() -> Any:
    try:
        import spyndex
    except ImportError as error:
        raise KernelError(
            "spectral indices need the package spyndex, which is not installed",
            place="index",
            remedy="install tilewright[indices]",
        ) from error
    return spyndex


def _find(name: str) -> Any:
    """Return spyndex's entry; the case may be wrong where only one index is meant (BAI and BaI are two)."""
    indices = _catalogue().indices
    known = list(indices)
    if name in known:
        return indices[name]
    alike = [n for n in known if n.lower() == name.lower()]
    if len(alike) == 1:
        return indices[alike[0]]
    near = alike or [
        n for low in difflib.get_close_matches(name.lower(), {n.lower() for n in known}, n=3, cutoff=0.5)
        for n in known if n.lower() == low
    ]  # fmt: skip
    hint = f"did you mean {' or '.join(near)}?" if near else f"spyndex knows {len(known)} others"
    raise KernelError(f"no spectral index {name!r}; {hint}", place="index")


def _kernel_pair(symbol: str) -> tuple[str, str] | None:
    """Split a kernel value such as ``kNR``, the similarity of N and R, into its two letters."""
    return (symbol[1], symbol[2]) if len(symbol) == 3 and symbol[0] == "k" and symbol[1:].isupper() else None


def _symbols(entry: Any, similarity: str) -> tuple[list[str], list[str]]:
    """Return the letters of the bands and the names of the constants that an index needs, in order."""
    letters: list[str] = []
    constants: list[str] = []
    for symbol in entry.bands:
        pair = _kernel_pair(symbol)
        for part in pair or (symbol,):
            into = letters if part in LETTERS else constants
            into.extend([part] if part not in into else [])
        if pair:
            constants.extend(c for c in _KERNEL_CONSTANTS[similarity] if c not in constants)
    return letters, constants


def _constants(entry: Any, needed: list[str], given: Mapping[str, float]) -> dict[str, float]:
    unused = sorted(set(given) - set(needed))
    place = f"index {entry.short_name}"
    if unused:
        raise KernelError(
            f"the formula {entry.formula} does not use {', '.join(unused)}",
            place=place,
            remedy=f"its constants: {', '.join(needed) or 'none'}",
        )
    known = _catalogue().constants
    values: dict[str, float] = {}
    for name in needed:
        value = given.get(name, known[name].default)
        if value is None:
            raise KernelError(
                f"the formula {entry.formula} needs {name} ({known[name].description}), which has no default",
                place=place,
                remedy=f"give it with --set {name}=NUMBER",
            )
        values[name] = float(value)
    return values


def _is_nonnegative(node: ast.expr) -> bool:
    """Say whether a term is at least zero where all bands are: bands, positive numbers, sums and products."""
    if isinstance(node, ast.Name):
        return node.id in LETTERS
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and node.value >= 0
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add | ast.Mult | ast.Pow)
        and _is_nonnegative(node.left)
        and _is_nonnegative(node.right)
    )


def normalised_difference(formula: str) -> bool:
    """Say whether a formula is ``(a - b) / (a + b)`` of terms that are never negative: then |value| <= 1."""
    node = ast.parse(formula, mode="eval").body
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
        return False
    top, bottom = node.left, node.right
    if not (isinstance(top, ast.BinOp) and isinstance(bottom, ast.BinOp)):
        return False
    same = ast.dump(top.left) == ast.dump(bottom.left) and ast.dump(top.right) == ast.dump(bottom.right)
    signs = isinstance(top.op, ast.Sub) and isinstance(bottom.op, ast.Add)
    return same and signs and _is_nonnegative(top.left) and _is_nonnegative(top.right)


def _similarity(a: Any, b: Any, kind: str, constants: Mapping[str, float]) -> Any:
    """Kernel value of two bands (Camps-Valls et al. 2021), element by element."""
    if kind == "linear":
        return a * b
    if kind == "poly":
        return (a * b + constants["c"]) ** constants["p"]
    return (-((a - b) ** 2) / (2 * constants["sigma"] ** 2)).exp()


def _build(
    formula: str,
    symbols: tuple[str, ...],
    letters: tuple[str, ...],
    constants: Mapping[str, float],
    similarity: str,
    limit: bool,
) -> Callable[..., Any]:
    import torch

    code = compile(formula, formula, "eval")

    def one_date(bands: Tensor) -> Tensor:
        values: dict[str, Any] = {letter: bands[:, i : i + 1] for i, letter in enumerate(letters)}
        values |= constants
        for symbol in symbols:
            if (pair := _kernel_pair(symbol)) is not None:
                first, second = (torch.as_tensor(values[p]).to(bands) for p in pair)
                values[symbol] = _similarity(first, second, similarity, constants)
        # As spyndex does it, whose computeIndex would read its catalogue from the disk at every call: 3 ms.
        result: Tensor = eval(code, {"__builtins__": {}}, values)  # noqa: S307 - the formula is the catalogue's
        return result.clamp(-1, 1) if limit else result

    def forward(image: Tensor, valid: Tensor) -> Tensor:
        """``image`` ``[N, T, C, H, W]`` -> ``[N, 1, H, W]``; NaN where invalid or divided by zero."""
        result = one_date(image[:, 0])
        if image.shape[1] == 2:
            result = result - one_date(image[:, 1])
        result = torch.nan_to_num(result, torch.nan, torch.nan, torch.nan)
        # One date needs no reduction, which takes as long as the formula.
        return result.masked_fill_(~(valid[:, 0] if valid.shape[1] == 1 else valid.all(dim=1)), torch.nan)

    return forward


def _takes_any_scale(entry: Any, letters: list[str], constants: Mapping[str, float]) -> bool:
    """Say whether the index of bands that are a thousand times larger is the same, as a ratio's is."""
    if any(_kernel_pair(symbol) is not None for symbol in entry.bands):
        return False
    code = compile(entry.formula, entry.formula, "eval")

    def of(scale: float) -> float:
        bands = {letter: scale * (0.11 + 0.07 * i) for i, letter in enumerate(letters)}
        value: float = eval(code, {"__builtins__": {}}, {**bands, **constants})  # noqa: S307 - the catalogue's
        return value

    return bool(abs(of(1000) - of(1)) <= 1e-9 * abs(of(1)))


def _units(letters: list[str], *, any_scale: bool) -> str | None:
    """Return the units of the bands; None of a ratio, which takes digital numbers too."""
    if any_scale:
        return None
    if all(letter in _RADAR for letter in letters):
        return "linear power"
    return None if any(letter in _THERMAL for letter in letters) else "reflectance"


def spectral_index(
    weights: str | None = None,
    *,
    name: str = "NDVI",
    difference: bool = False,
    bands: str | None = None,
    kernel: str = "RBF",
    C1: float | None = None,
    C2: float | None = None,
    L: float | None = None,
    PAR: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    c: float | None = None,
    cexp: float | None = None,
    epsilon: float | None = None,
    eta: float | None = None,
    fdelta: float | None = None,
    g: float | None = None,
    gamma: float | None = None,
    k: float | None = None,
    lambdaG: float | None = None,
    lambdaN: float | None = None,
    lambdaN2: float | None = None,
    lambdaR: float | None = None,
    lambdaS1: float | None = None,
    lambdaS2: float | None = None,
    lmb: float | None = None,
    n: float | None = None,
    nexp: float | None = None,
    omega: float | None = None,
    p: float | None = None,
    sigma: float | None = None,
    sla: float | None = None,
    slb: float | None = None,
) -> Kernel:
    """Return the kernel of one spectral index of spyndex's catalogue.

    Parameters
    ----------
    weights
        None: the kernel has none.
    name
        Short name in the catalogue, such as ``NDVI``, ``NBR``, ``MNDWI``, ``kNDVI``.
    difference
        True takes two dates and gives the index before minus after, the sign of dNBR (Key and Benson 2006):
        what was lost is positive.
    bands
        Names to look for instead of the usual ones, in the order of the kernel's bands, separated by commas.
    kernel
        Similarity of the kernel indices (kNDVI, kEVI, ...): ``RBF``, ``linear`` or ``poly``.
    C1, C2, L, ...
        Constants of the formula; spyndex's defaults where None.

    The values are spyndex's own: the formula of its catalogue runs on the tensors. A pixel where the formula divides
    by zero or takes a root of a negative number has no result. A normalised difference is held to [-1, 1],
    which it leaves only where a reflectance is below zero.

    Raises
    ------
    KernelError
        Unknown index, a constant that the formula lacks or does not use, or spyndex is not installed.
    """
    options = {key: value for key, value in locals().items() if key != "weights" and value is not None}
    no_weights(weights, "index")
    choose("kernel", kernel, _KERNELS, "index")
    entry = _find(name)
    letters, needed = _symbols(entry, kernel)
    fixed = ("name", "difference", "bands", "kernel")
    constants = _constants(entry, needed, {k: v for k, v in options.items() if k not in fixed})
    names = tuple(LETTERS[letter] for letter in letters)
    if bands is not None:
        own = band_names(bands, "index")
        if not isinstance(own, tuple) or len(own) != len(names):
            raise KernelError(f"bands={bands!r} does not rename {', '.join(names)}", place=f"index {name}")
        names = own
    limit = normalised_difference(entry.formula)
    span = 2.0 if difference else 1.0
    units = _units(letters, any_scale=_takes_any_scale(entry, letters, constants))
    values = ", ".join(f"{key} = {value:g}" for key, value in constants.items())
    description = f"{entry.long_name}: {entry.formula}" + (f" with {values}" if values else "")
    spec = KernelSpec(
        name=f"index-{entry.short_name}",
        description=description + (", before minus after" if difference else ""),
        inputs={"image": InputSpec(dates=2 if difference else 1, bands=names, units=units)},
        outputs={
            ("d" if difference else "") + entry.short_name.lower(): OutputSpec(
                kind="value",
                range=(-span, span) if limit else None,
                valid_rule="own",
                description=f"{entry.long_name}{', before minus after' if difference else ''}",
            )
        },
        radius=0,
        autocast=False,
        licence="Apache-2.0; catalogue: spyndex, MIT",
        citation=f"{entry.reference}; Montero et al. 2023, Scientific Data 10, 197",
        status="parity",
    )
    build = partial(_build, entry.formula, tuple(entry.bands), tuple(letters), constants, kernel, limit)
    return Kernel(spec=spec, build=build, options=options)
