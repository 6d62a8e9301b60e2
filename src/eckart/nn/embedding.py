"""Embeddings with adapters: the columns of A for the tokens, times B."""

from torch import Tensor, nn

from eckart.adapter.outline import LayerKind
from eckart.nn.adapted import AdaptedModule
from eckart.nn.factors import LoRAFactors


class LoRAEmbedding(AdaptedModule):
    """ΔW = scaling · (B·A)ᵀ, shape `(vocabulary, dimension)`; A is `(rank, vocabulary)`, B `(dimension, rank)`."""

    kinds = ("embedding",)

    @classmethod
    def kind_of(cls, module: nn.Module) -> LayerKind | None:
        """`embedding`."""
        return "embedding" if isinstance(module, nn.Embedding) else None

    @classmethod
    def fault_of(cls, module: nn.Module) -> str | None:
        """An embedding with max_norm changes its weight in the forward pass."""
        return "an embedding with max_norm changes its weight" if getattr(module, "max_norm", None) else None

    def as_rows(self, weight: Tensor) -> Tensor:
        """The weight as `(dimension, vocabulary)`."""
        return weight.T

    def update(self, x: Tensor, factors: LoRAFactors) -> Tensor:
        """Scaling · A[:, x]ᵀ·Bᵀ; tokens are not dropped."""
        A, B = factors.stacked()
        base = self.base_layer
        taken = nn.functional.embedding(x, A.T, padding_idx=base.padding_idx, sparse=False)  # type: ignore[arg-type]
        own_scale = getattr(base, "embed_scale", 1.0)  # of Gemma's and BART's embeddings
        return ((taken @ B.T) * (factors.scaling * own_scale)).to(self.weight.dtype)
