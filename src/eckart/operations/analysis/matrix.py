"""The analysis of one matrix, and its entry in `analysis.json`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from eckart.linalg import Interval

if TYPE_CHECKING:
    from eckart.linalg import NoiseEstimate, Spectrum

ENERGIES = (0.9, 0.95, 0.99)
ERRORS = (0.1, 0.01)

Number = int | float | Interval | None


@dataclass(frozen=True)
class MatrixAnalysis:
    """One matrix: its singular values and the noise caused by its storage dtype.

    Attributes:
        name: module path; `experts.gate_up_proj[3]` for one expert of a fused tensor.
        shape: `(out_features, in_features)`.
        dtype: as stored, such as `bfloat16`, or the GGUF type such as `Q4_1`.
        spectrum: all singular values, or the leading ones.
        noise: estimated for weights and differences of checkpoints; None for adapters and quantized weights.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    spectrum: Spectrum
    noise: NoiseEstimate | None = None

    @property
    def params(self) -> int:
        """Entries of the matrix."""
        return self.shape[0] * self.shape[1]

    def shifted(self, exponent: int) -> MatrixAnalysis:
        """The analysis of the matrix times 2^exponent."""
        from eckart.linalg.scaling import shifted_number

        noise = self.noise and replace(
            self.noise,
            rounding_floor=shifted_number(self.noise.rounding_floor, exponent),
            edge=shifted_number(self.noise.edge, exponent),
        )
        return replace(self, spectrum=self.spectrum.shifted(exponent), noise=noise)

    def statistics(self) -> dict[str, Number]:
        """Every statistic of the spectrum, by its name in `analysis.csv`; None if it is undefined."""
        spectrum = self.spectrum
        numbers: dict[str, Number] = {
            "fro_norm": spectrum.fro_norm,
            "spectral_norm": spectrum.spectral_norm,
            "stable_rank": spectrum.stable_rank,
            "effective_rank": spectrum.effective_rank,
            "participation_ratio": spectrum.participation_ratio,
            "numerical_rank": spectrum.numerical_rank,
        }
        numbers |= {f"rank_for_energy_{energy}": spectrum.rank_for_energy(energy) for energy in ENERGIES}
        return numbers | {f"rank_for_error_{error}": spectrum.rank_for_error(error) for error in ERRORS}

    def to_json(self) -> dict[str, Any]:
        """The entry of `analysis.json`: statistics, and what they follow from; an interval is `{"lower", "upper"}`."""
        numbers = {key: _number_to_json(number) for key, number in self.statistics().items()}
        shares = {
            rule: {str(share): numbers.pop(f"{rule}_{share}") for share in shares}
            for rule, shares in (("rank_for_energy", ENERGIES), ("rank_for_error", ERRORS))
        }
        facts = self.facts()
        first = {key: facts.pop(key) for key in ("name", "shape", "dtype")}
        return first | numbers | shares | facts

    def facts(self) -> dict[str, Any]:
        """The part of the entry that `from_json` reads, and everything else follows from.

        A partial spectrum adds `tail`, the certified limits that its bounds are derived from.
        """
        entry: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "fro_norm": _number_to_json(self.spectrum.fro_norm),
            "noise": self.noise and {key: _number_to_json(value) for key, value in vars(self.noise).items()},
            "complete": self.spectrum.complete,
            "singular_values": self.spectrum.singular_values.tolist(),
        }
        tail = self.spectrum.tail
        if tail is not None:
            entry["tail"] = asdict(tail) | {"energy_upper": tail.energy_upper.tolist()}
        return entry

    @staticmethod
    def from_json(entry: dict[str, Any]) -> MatrixAnalysis:
        """The matrix of an entry written by `to_json` or `facts`; its statistics are computed when asked for.

        Raises:
            KeyError, TypeError, ValueError: the entry is malformed.
        """
        import torch

        from eckart.linalg import NoiseEstimate, Spectrum, Tail

        tail = entry.get("tail")
        rows, columns = map(int, entry["shape"])
        dtype = getattr(torch, entry["dtype"], None)
        spectrum = Spectrum(
            singular_values=torch.tensor(entry["singular_values"], dtype=torch.float64),
            shape=(rows, columns),
            fro_norm=entry["fro_norm"],
            dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,  # GGUF types are read as float32
            tail=tail and Tail(**tail | {"energy_upper": torch.tensor(tail["energy_upper"], dtype=torch.float64)}),
        )
        noise = entry["noise"]
        return MatrixAnalysis(
            entry["name"], (rows, columns), entry["dtype"], spectrum, noise and NoiseEstimate(**noise)
        )


def _number_to_json(number: Any) -> Any:
    """A statistic as JSON: bounds as a pair, null for a number that is not finite."""
    if isinstance(number, Interval):
        return {"lower": _number_to_json(number.lower), "upper": _number_to_json(number.upper)}
    return None if isinstance(number, float) and not math.isfinite(number) else number
