"""What a precision below fp32 costs an encoder, and whether that is within what it may.

Knows the numbers to hold, no engine and no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from amdim_export.errors import ParityError
from amdim_export.parity import Agreement, Parity, Tolerance


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """What held-out real pictures must show before a precision is chosen unasked.

    Attributes:
        mean_cosine: Of every output, to the trained encoder's in float32.
        p1_cosine: 1st percentile of the same.
        neighbor_agreement: Share of the ten nearest that stay.
        speedup: Over fp32 in the same engine at batch 16. Asked for by `--strict` alone, since
            another processor's speed says nothing of the one that will serve.
    """

    mean_cosine: float
    p1_cosine: float
    neighbor_agreement: float
    speedup: float | None = None


TARGETS: Mapping[str, Targets] = {
    "bf16": Targets(mean_cosine=0.9995, p1_cosine=0.997, neighbor_agreement=0.97),
    "int8": Targets(mean_cosine=0.995, p1_cosine=0.97, neighbor_agreement=0.92, speedup=3.0),
}


@dataclasses.dataclass(frozen=True, slots=True)
class CertifiedPrecision:
    """One precision that an artifact may be run at.

    Attributes:
        precision: Its name, one of `TARGETS`.
        engine: What it was measured with, or is meant for.
        tolerance: What canaries must hold at it, wherever it is served.
        parity: Against the trained encoder; None where this processor cannot run it.
        speedup: Over fp32 in the same engine at batch 16; None where not timed.
        source: Which pictures were measured, in words.
    """

    precision: str
    engine: str
    tolerance: Tolerance
    parity: Parity | None = None
    speedup: float | None = None
    source: str = ""

    @property
    def targets(self) -> Targets:
        """What it has to reach."""
        return TARGETS[self.precision]

    @property
    def qualifies(self) -> bool | None:
        """Whether its vectors are near enough to be chosen unasked; None where not measured."""
        return None if self.parity is None else not self._inaccuracies()

    def missed(self) -> list[str]:
        """Returns each target that was measured and not reached, in words."""
        found = self._inaccuracies()
        wanted = self.targets.speedup
        if wanted is not None and self.speedup is not None and not self.speedup >= wanted:
            found.append(f"it is {self.speedup:.2f} times as fast as fp32, not {wanted:g}")
        return found

    def require(self) -> None:
        """Refuses a precision that was measured and missed a target.

        Raises:
            ParityError: Names every target that was missed.
        """
        if missed := self.missed():
            raise ParityError(f"{self.precision} misses its targets: {'; '.join(missed)}")

    def _inaccuracies(self) -> list[str]:
        if self.parity is None:
            return []
        targets, found = self.targets, []
        for name, seen in self.parity.outputs.items():
            for what, value, least in (
                ("mean cosine", seen.mean_cosine, targets.mean_cosine),
                ("1st percentile", seen.p1_cosine, targets.p1_cosine),
            ):
                if not value >= least:  # also refuses NaN
                    found.append(f"{name} has a {what} of {value:.4f}, below {least}")
        seen_neighbors, least = self.parity.neighbor_agreement, targets.neighbor_agreement
        if not seen_neighbors >= least:
            found.append(f"{seen_neighbors:.4f} of the nearest 10 agree, fewer than {least}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns what a certificate says of it."""
        values: dict[str, Any] = {
            "engine": self.engine,
            "qualifies": self.qualifies,
            "missed": self.missed(),
            "targets": dataclasses.asdict(self.targets),
            "tolerance": dataclasses.asdict(self.tolerance),
            "speedup": self.speedup,
        }
        if self.parity is not None:
            values["measured_on"] = {"images": self.parity.images, "source": self.source}
            values["batches"] = list(self.parity.batches)
            values["outputs"] = {
                name: dataclasses.asdict(found) for name, found in self.parity.outputs.items()
            }
            values["neighbor_agreement_at_10"] = self.parity.neighbor_agreement
        return values


def parse_precision(name: str, values: Mapping[str, Any]) -> CertifiedPrecision:
    """Returns a precision as a certificate has it.

    Raises:
        KeyError, TypeError, ValueError: A value is missing or broken.
    """
    if name not in TARGETS:
        raise ValueError(f"{name} is no precision that this program knows")
    parity = None
    if "outputs" in values:
        parity = Parity(
            outputs={key: Agreement(**found) for key, found in values["outputs"].items()},
            neighbor_agreement=float(values["neighbor_agreement_at_10"]),
            images=int(values["measured_on"]["images"]),
            batches=tuple(int(size) for size in values["batches"]),
        )
    speedup = values["speedup"]
    return CertifiedPrecision(
        name,
        values["engine"],
        Tolerance(**values["tolerance"]),
        parity,
        None if speedup is None else float(speedup),
        values["measured_on"]["source"] if parity is not None else "",
    )


def canary_tolerance(found: Mapping[str, Agreement]) -> Tolerance:
    """Returns what canaries must hold elsewhere: no more than twice as far off as here."""
    error = max(one.relative_error for one in found.values())
    cosine = min(one.min_cosine for one in found.values())
    return Tolerance(max_relative_error=2.0 * error, min_cosine=1.0 - 2.0 * (1.0 - cosine))
