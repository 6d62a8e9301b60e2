"""Memory of settings of one model: simulated on all or on few layers, or estimated if its code cannot run."""

from typing import TYPE_CHECKING

from eckart.engine import NoProgress, Progress
from eckart.planning.architecture import Outline
from eckart.planning.estimates import Proportions, estimate_setting
from eckart.planning.forecast import Forecast
from eckart.planning.setting import PlanSetting
from eckart.planning.shallow import at_depth, extrapolate, shallow_depths
from eckart.planning.simulation import SimulationError, simulate

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TOLERANCE = 0.005  # relative deviation of an extrapolation from the full model


class Forecaster:
    """Predicts the memory of settings of one model, each once.

    Attributes:
        outline: modules and shapes of the model; None where only a number of parameters is known.
        total_params: parameters of the model without adapters.
        caveats: why numbers are estimates, or took longer, in words.

    Args:
        architecture: config of the model, or its number of parameters.
        progress: receives each simulation as a stage; they take seconds, or minutes for deep models.
    """

    def __init__(self, architecture: "PretrainedConfig | int", progress: Progress | None = None) -> None:
        self._progress = progress or NoProgress()
        self.outline: Outline | None = None
        if isinstance(architecture, int):
            self.total_params = architecture
        else:
            self.outline = Outline(architecture)
            self.total_params = self.outline.total_params
        self.caveats: list[str] = []
        self._estimates = self.outline is None
        self._depths = None if self.outline is None else shallow_depths(self.outline)
        self._cache: dict[tuple[object, bool], Forecast] = {}

    def quick(self, setting: PlanSetting) -> Forecast:
        """The forecast from few layers if all are alike, else from all of them.

        Raises:
            MismatchError: the adapter does not fit the model.
        """
        return self._forecast(setting, few_layers=True)

    def full(self, setting: PlanSetting) -> Forecast:
        """The forecast from all layers; errors as in `quick`."""
        return self._forecast(setting, few_layers=False)

    def confirm(self, setting: PlanSetting) -> Forecast:
        """The forecast from all layers; if the one from few layers deviates, few layers are no longer used."""
        quick = self.quick(setting)
        if quick.layers is None:
            return quick
        full = self.full(setting)
        if abs(quick.peak_bytes / full.peak_bytes - 1) > TOLERANCE:
            self._depths = None
            self._cache = {key: value for key, value in self._cache.items() if value.layers is None}
            self.caveats.append("Few layers did not predict the full model, so all layers were simulated.")
        return full

    def _forecast(self, setting: PlanSetting, *, few_layers: bool) -> Forecast:
        key = (repr(setting), few_layers)
        if key not in self._cache:
            self._cache[key] = self._estimate(setting) if self._estimates else self._simulate(setting, few_layers)
        return self._cache[key]

    def _simulate(self, setting: PlanSetting, few_layers: bool) -> Forecast:
        assert self.outline is not None
        config = self.outline.config
        try:
            if self._depths and few_layers:
                first, second = (self._run(setting, depth) for depth in self._depths)
                layers: int = config.get_text_config().num_hidden_layers
                extrapolated = extrapolate(first, second, self._depths, layers)
                if extrapolated is not None:
                    return extrapolated
            return self._run(setting)
        except SimulationError as error:
            self.caveats.append(f"{error}, so the numbers are rough estimates from a closed form.")
            self._estimates = True
            self._cache.clear()
            return self._estimate(setting)

    def _run(self, setting: PlanSetting, layers: int | None = None) -> Forecast:
        """Simulate a step on some layers, or on all of them."""
        assert self.outline is not None
        config = self.outline.config
        words = f"{setting.method}, {setting.batch_size} × {setting.length:,} tokens"
        checkpointing = ", checkpointing" if setting.gradient_checkpointing else ""
        depth = layers or getattr(config.get_text_config(), "num_hidden_layers", None)
        self._progress.start(f"Simulating {words}{checkpointing}" + (f", {depth} layers" if depth else ""), 0, "steps")
        try:
            return simulate(config if layers is None else at_depth(config, layers), setting)
        finally:
            self._progress.finish()

    def _estimate(self, setting: PlanSetting) -> Forecast:
        proportions = Proportions.from_outline(self.outline) if self.outline else Proportions.usual(self.total_params)
        adapter = setting.adapter
        if adapter is None:
            trainable = self.total_params
        elif self.outline is not None:
            trainable = self.outline.adapter(adapter).trainable_params
        else:
            trainable = round(proportions.adapter_params(adapter.rank))
        parts = estimate_setting(proportions, setting, trained_params=trainable)
        return Forecast(
            setting=setting,
            peak_bytes=sum(parts.values()),
            parts=parts,
            trainable_params=trainable,
            total_params=self.total_params + (trainable if adapter else 0),
            source="estimate",
        )
