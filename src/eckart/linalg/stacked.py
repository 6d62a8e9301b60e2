"""SVDs of many products B·A of the same shape in one batched call instead of one call per layer."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def stacked_svd(
    lora_B: Float[Tensor, "b out r"], lora_A: Float[Tensor, "b r in"]
) -> tuple[Float64[Tensor, "b out k"], Float64[Tensor, "b k"], Float64[Tensor, "b k in"]]:
    """Exact SVDs of the products `lora_B[i] @ lora_A[i]`, by QR of the thin factors; no product is formed.

    Args:
        lora_B: shape `(b, out_features, rank)`, any float dtype, finite.
        lora_A: shape `(b, rank, in_features)`, on the same device.

    Returns:
        `(U, S, Vh)` in float64 with k = min(rank, out_features, in_features). The error of each product is ε₆₄·‖B‖‖A‖,
        as in `LowRank.svd`: a value below `rounding_floor` is rounding.
    """
    left, right = (torch.linalg.qr(side.detach().to(torch.float64)) for side in (lora_B, lora_A.mT))
    U, S, Vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    return left.Q @ U, S, Vh @ right.Q.mT


def rounding_floor(lora_B: Float[Tensor, "b out r"], lora_A: Float[Tensor, "b r in"]) -> Float64[Tensor, " b"]:
    """Largest singular value of each product that rounding alone can produce: rank·ε₆₄·‖B‖_F·‖A‖_F."""
    norms = [torch.linalg.vector_norm(side.detach(), dim=(1, 2), dtype=torch.float64) for side in (lora_B, lora_A)]
    return lora_A.shape[1] * torch.finfo(torch.float64).eps * norms[0] * norms[1]
