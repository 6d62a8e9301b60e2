"""An adapter's spectra come from its factors, and are those of its dense product."""

from pathlib import Path

import pytest
import torch

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError, OptionError
from eckart.operations import analyze


@pytest.fixture
def adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)

    def layer(rank: int, *, alpha: float) -> AdapterLayer:
        return AdapterLayer(
            lora_A=torch.randn(rank, 10, generator=generator),
            lora_B=torch.randn(12, rank, generator=generator),
            alpha=alpha,
        )

    layers = {"model.layers.0.q_proj": layer(4, alpha=8), "model.layers.0.v_proj": layer(4, alpha=8)}
    return Adapter(layers, modules_to_save={"model.norm.weight": torch.ones(10)})


@pytest.mark.parametrize("form", ["value", "folder"])
def test_an_adapter_has_the_spectrum_of_its_scaled_product(form: str, adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "adapter")
    found = analyze(adapter if form == "value" else tmp_path / "adapter")
    assert found.kind == "adapter"
    for matrix in found.matrices:
        dense = torch.linalg.svdvals(adapter[matrix.name].delta().double())
        torch.testing.assert_close(matrix.spectrum.singular_values, dense[:4], rtol=1e-6, atol=0)
        assert matrix.spectrum.numerical_rank == 4
        assert matrix.spectrum.complete
    assert [left.name for left in found.skipped] == ["model.norm.weight"]


def test_patterns_choose_among_an_adapters_layers(adapter: Adapter) -> None:
    found = analyze(adapter, target=["v_proj"])
    assert [matrix.name for matrix in found.matrices] == ["model.layers.0.v_proj"]
    assert "model.layers.0.q_proj" in [left.name for left in found.skipped]
    with pytest.raises(MismatchError, match="v_proj"):
        analyze(adapter, target=["w_proj"])


def test_an_adapter_of_zero_updates_has_no_ranks(adapter: Adapter) -> None:
    fresh = AdapterLayer(lora_A=torch.randn(4, 10), lora_B=torch.zeros(12, 4), alpha=8)
    entry = analyze(Adapter({"q_proj": fresh})).to_json()["matrices"][0]
    assert entry["rank_for_energy"]["0.9"] is None
    assert entry["stable_rank"] is None


def test_an_adapter_is_not_subtracted_from(adapter: Adapter) -> None:
    with pytest.raises(OptionError, match="without a base"):
        analyze(adapter, {"q_proj.weight": torch.ones(12, 10)})
    with pytest.raises(OptionError, match="is an adapter, not a model"):
        analyze({"q_proj.weight": torch.ones(12, 10)}, adapter)
