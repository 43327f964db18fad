"""DDPM-CD described: its noise belongs to the ground, and its weights come as two files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tilewright.errors import KernelError

from ..contract import Kernel, RadiusAt, TileRule
from ..published import Published
from .binary import FULL, HALF, NETS, Binary

__all__ = ["DDPM_CD", "Denoiser"]

LONGEST = 2000
"""Steps of the schedule that the denoiser was trained on."""


def official_name(name: str) -> str:
    """Return the name of a tensor in the whole network, from that in either of the two files."""
    if name.startswith(("netG.", "netCD.")):
        return name
    return f"netCD.{name}" if name.startswith(("decoder.", "clfr_")) else f"netG.{name}"


@dataclass(frozen=True)
class Denoiser(Binary):
    """A bitemporal network that looks at its dates under noise."""

    def __call__(
        self,
        weights: Any = None,
        *,
        head: Any = None,
        steps: tuple[int, ...] = (50, 100),
        seed: int = 0,
        threshold: float | None = None,
        low: float = 0.0,
        high: float = FULL,
    ) -> Kernel:
        """Return the kernel; the arguments are those of `Binary` and three more.

        Parameters
        ----------
        weights, threshold, low, high
            As for `Binary`; the weights of the denoiser, or of all.
        head
            Weights of the head, where they are in a file of their own: given as ``weights`` are.
        steps
            Strengths of noise, as numbers of steps; the head was trained for one set of them.
        seed
            Of the noise, which is the same for the same pixel of the ground in every tile and run.

        Raises
        ------
        KernelError
            As for `Binary`; steps that are none, or a head alone.
        """
        if not steps or not all(0 < step <= LONGEST for step in steps):
            raise KernelError(
                f"steps={list(steps)}", place=self.name, remedy=f"give one or more of 1 to {LONGEST}"
            )
        if head is not None and weights is None:
            raise KernelError("a head without the denoiser", place=self.name, remedy="give --weights too")
        plain = replace(
            self,
            published=replace(self.published, arguments={"steps": tuple(steps)}),
            more={**self.more, "seed": seed},
        )
        both = weights if head is None else (weights, head)
        kernel = Binary.__call__(plain, both, threshold=threshold, low=low, high=high)
        return replace(kernel, options={**kernel.options, "steps": list(steps), "seed": seed})


DDPM_CD = Denoiser(
    name="ddpm-cd",
    about="DDPM-CD: change of buildings, from the inner maps of a denoiser of pictures of the Earth",
    published=Published(
        f"{NETS}.ddpm_cd:DDPMCD",
        f"{NETS}.ddpm_cd:score_of_ddpm_cd",
        {"steps": (50, 100)},
        rename=official_name,
    ),
    norm=HALF,
    tile=TileRule(fixed=256),
    stride=16,
    reach=RadiusAt(eps=0.05, px=64),
    citation="Bandara, Nair, Patel 2022, https://arxiv.org/abs/2206.11892",
    licence="Apache-2.0 (this code); official code and weights: MIT",
)
