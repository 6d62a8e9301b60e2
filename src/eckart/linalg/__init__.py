"""Low-rank mathematics: tensors in, tensors out, on the CPU or a GPU."""

from eckart.linalg.allocation import Allocation, allocate
from eckart.linalg.certificate import certify, partial_spectrum
from eckart.linalg.krylov import PartialSVD, partial_svd
from eckart.linalg.low_rank import LowRank, factorize
from eckart.linalg.noise import NoiseEstimate, bulk_noise, difference_noise, rounding_variance, zero_fraction
from eckart.linalg.rank import minimal_rank, spectrum_for
from eckart.linalg.slabs import InMemory, Matrix, RowSlabs, as_slabs
from eckart.linalg.spectrum import Interval, RankBound, Spectrum, Tail
from eckart.linalg.stacked import rounding_floor, stacked_svd
from eckart.linalg.subspace import Overlap, chordal_distance, geodesic_distance, overlap, principal_angles
from eckart.linalg.svd import spectrum
from eckart.linalg.truncated import TruncatedSVD, truncated_svd

__all__ = [
    "Allocation",
    "InMemory",
    "Interval",
    "LowRank",
    "Matrix",
    "NoiseEstimate",
    "Overlap",
    "PartialSVD",
    "RankBound",
    "RowSlabs",
    "Spectrum",
    "Tail",
    "TruncatedSVD",
    "allocate",
    "as_slabs",
    "bulk_noise",
    "certify",
    "chordal_distance",
    "difference_noise",
    "factorize",
    "geodesic_distance",
    "minimal_rank",
    "overlap",
    "partial_spectrum",
    "partial_svd",
    "principal_angles",
    "rounding_floor",
    "rounding_variance",
    "spectrum",
    "spectrum_for",
    "stacked_svd",
    "truncated_svd",
    "zero_fraction",
]
