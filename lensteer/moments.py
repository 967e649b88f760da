"""Running moments of activations: count, mean, variance and extremes of each unit, exact under merging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of n samples, unit by unit, in float64 (float32 where the device has no float64).

    Attributes:
        count: n.
        mean: sample mean.
        deviation: sum of squared deviations from the mean.
        low, high: extremes.
    """

    count: float
    mean: Float[Tensor, "..."]
    deviation: Float[Tensor, "..."]
    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Population variance (divided by n)."""
        return self.deviation / self.count

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @classmethod
    def of(cls, samples: Float[Tensor, "n ..."]) -> Moments:
        """Moments over the first axis.

        Raises:
            ValueError: no samples.
        """
        if len(samples) == 0:
            raise ValueError("moments of no samples are not defined")
        x = samples.to(torch.float32 if samples.device.type == "mps" else torch.float64)
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).square().sum(0), x.amin(0), x.amax(0))

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of samples together (Chan, Golub and LeVeque's pairwise update)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.deviation + other.deviation + shift.square() * (self.count * other.count / count),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def pack(self) -> Float[Tensor, "5 ..."]:
        """All five as one tensor, for one transfer between devices and one entry in a file."""
        return torch.stack([torch.full_like(self.mean, self.count), self.mean, self.deviation, self.low, self.high])

    @classmethod
    def unpack(cls, packed: Float[Tensor, "5 ..."]) -> Moments:
        """The inverse of `pack`."""
        count, mean, deviation, low, high = packed
        return cls(float(count.flatten()[0]), mean, deviation, low, high)
