"""What settings of one model take: simulated whole, simulated on few layers, or estimated where nothing can run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eckart.planning.counts import Outline
from eckart.planning.estimates import estimate_setting
from eckart.planning.proportions import Proportions
from eckart.planning.setting import PlanSetting
from eckart.planning.shallow import at_depth, extrapolate, shallow_depths
from eckart.planning.simulation import Part, Simulation, SimulationError
from eckart.planning.simulator import simulate
from eckart.planning.subject import Subject

TOLERANCE = 0.005  # by which an extrapolation may miss the whole model


@dataclass(frozen=True)
class Forecast:
    """The memory of one training step of one setting.

    Attributes:
        setting: that was planned.
        peak_bytes: the most that tensors take at once, the sum of `parts`.
        parts: of the peak, as in `Simulation`.
        trainable_params: numbers that train.
        total_params: of the model, adapters included.
        source: how it is known.
        where: the module and the phase of the peak, if simulated.
        layers: numbers of layers that were simulated in place of all; None where all were.
    """

    setting: PlanSetting
    peak_bytes: int
    parts: Mapping[Part, int]
    trainable_params: int
    total_params: int
    source: Literal["simulation", "estimate"]
    where: str = ""
    layers: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that scripts rely on, for this method."""
        return {
            "method": self.setting.method,
            "batch_size": self.setting.batch_size,
            "max_length": self.setting.length,
            "gradient_checkpointing": self.setting.gradient_checkpointing,
            "peak_bytes": self.peak_bytes,
            "parts": dict(self.parts),
            "trainable_params": self.trainable_params,
            "total_params": self.total_params,
            "source": self.source,
            "where": self.where or None,
            "layers_simulated": list(self.layers) if self.layers else None,
        }


class Forecaster:
    """Plans settings of one model, each once.

    Attributes:
        outline: of the model; None where only a number of parameters is known, or its code does not even build.
        doubts: why numbers are estimates, or took the long way, in words.

    Args:
        subject: the model.
        tell: called with a few words before anything that takes seconds.
    """

    def __init__(self, subject: Subject, tell: Callable[[str], None] = lambda _: None) -> None:
        self.subject, self._tell = subject, tell
        self.outline = None if subject.config is None else Outline(subject.config)
        self.doubts: list[str] = []
        self._estimates = self.outline is None
        self._depths = None if self.outline is None else shallow_depths(self.outline)
        self._known: dict[tuple[object, bool], Forecast] = {}

    @property
    def total_params(self) -> int:
        """Numbers in the model without adapters."""
        return self.outline.total_params if self.outline else self.subject.params or 0

    def quick(self, setting: PlanSetting) -> Forecast:
        """A forecast from few layers where all are alike, else from all of them.

        Raises:
            MismatchError: the adapter does not fit the model.
        """
        return self._forecast(setting, whole=False)

    def whole(self, setting: PlanSetting) -> Forecast:
        """A forecast from all layers (errors as `quick`)."""
        return self._forecast(setting, whole=True)

    def confirm(self, setting: PlanSetting) -> Forecast:
        """A forecast from all layers, after which quick ones are trusted no more if this one's was wrong."""
        quick = self.quick(setting)
        if quick.layers is None:
            return quick
        whole = self.whole(setting)
        if abs(quick.peak_bytes / whole.peak_bytes - 1) > TOLERANCE:
            self._depths = None
            self._known = {key: value for key, value in self._known.items() if value.layers is None}
            self.doubts.append("Few layers did not tell the whole model: all of it was simulated.")
        return whole

    def _forecast(self, setting: PlanSetting, *, whole: bool) -> Forecast:
        key = (repr(setting), whole)
        if key not in self._known:
            self._known[key] = self._estimate(setting) if self._estimates else self._simulate(setting, whole=whole)
        return self._known[key]

    def _simulate(self, setting: PlanSetting, *, whole: bool) -> Forecast:
        assert self.outline is not None
        config = self.outline.config
        self._tell(_words(setting))
        try:
            if self._depths and not whole:
                first, second = (simulate(at_depth(config, depth), setting) for depth in self._depths)
                layers: int = config.get_text_config().num_hidden_layers
                found = extrapolate(first, second, self._depths, layers)
                if found is not None:
                    return _of(setting, found, self._depths)
            return _of(setting, simulate(config, setting))
        except SimulationError as error:
            self.doubts.append(f"{error}: what follows is a closed form, and rough.")
            self._estimates = True
            self._known.clear()
            return self._estimate(setting)

    def _estimate(self, setting: PlanSetting) -> Forecast:
        proportions = Proportions.of(self.outline) if self.outline else Proportions.usual(self.total_params)
        adapter = setting.adapter
        if adapter is None:
            trained = self.total_params
        elif self.outline is not None:
            trained = self.outline.adapter(adapter).trainable_params
        else:
            trained = round(proportions.adapter_params(adapter.rank))
        parts = estimate_setting(proportions, setting, trained_params=trained)
        total = self.total_params + (trained if adapter else 0)
        return Forecast(setting, sum(parts.values()), parts, trained, total, "estimate")


def _of(setting: PlanSetting, found: Simulation, layers: tuple[int, int] | None = None) -> Forecast:
    return Forecast(
        setting=setting,
        peak_bytes=found.peak_bytes,
        parts=found.parts,
        trainable_params=found.trainable_params,
        total_params=found.total_params,
        source="simulation",
        where=found.where,
        layers=layers,
    )


def _words(setting: PlanSetting) -> str:
    """`qlora, 2 × 1,024 tokens, with checkpointing`."""
    checkpointing = ", with checkpointing" if setting.gradient_checkpointing else ""
    return f"{setting.method}, {setting.batch_size} × {setting.length:,} tokens{checkpointing}"
