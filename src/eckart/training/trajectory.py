"""The history of every update during training, as a value and as `dynamics.json`.

The format `eckart-dynamics/1` contains no NaN; every list under a layer has one entry for each of `steps`, null if the
number is undefined (the effective rank of a zero update) or not finite, and floats have seven significant digits::

    {"format": "eckart-dynamics/1", "title": ..., "directions": 16,
     "log": {"step": [1, 2, …], "loss": […], "learning_rate": […], "gradient_norm": […], "heldout_loss": […]},
     "steps": [0, 1, 2, 4, …],
     "layers": [{"name": "model.layers.0.self_attn.q_proj", "shape": [out, in], "rank": 16,
       "base_norm": ‖W‖, "base_energy": [lower, upper],
       "A_norm": […], "B_norm": […], "norm": [‖ΔW‖, …], "relative_norm": [‖ΔW‖ / ‖W‖, …],
       "effective_rank": […], "stable_rank": […], "singular_values": [[σ₁, σ₂, …], …],
       "outputs": {"chance": k/out, "share": […], "phi": [[…], …]}, "inputs": {"chance": k/in, …},
       "magnitude_change": […]}],
     "seconds": {"recording": …, "subspaces": …}}

All norms are Frobenius norms. ΔW is the low-rank update s·(B·A − B₀·A₀), which starts at zero for every initialization;
for DoRA it is the update before rows are renormalized, and `magnitude_change`, ‖m − m₀‖ / ‖m₀‖, is the relative
distance of the learned row norms from m₀, those of W. `singular_values` has only values above rounding; others are 0.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eckart.checkpoint import atomic_file
from eckart.checkpoint.result_files import read_result
from eckart.errors import FileFormatError, SourceError

FORMAT = "eckart-dynamics/1"
FILE = "dynamics.json"
MOST_RANKS = 2**22  # of all layers together; figures and page take memory for each
LOGGED = ("loss", "learning_rate", "gradient_norm", "heldout_loss")

Numbers = list[float | None]
Lists = list[list[float] | None]


@dataclass
class SideDynamics:
    """Overlap of the updates of a layer with the leading k singular vectors of its base weight, on one side.

    Attributes:
        chance: k/n, the average of a random update, with which the numbers below are to be compared.
        share: share of ‖ΔW‖² in the base's leading subspace.
        phi: for each step φ of the base's k and the update's leading 1, 2, 4, … directions, each as long as the
            update has directions; of the first alone it is the squared cosine of u₁ to the subspace.

    Hu et al. (2021), "LoRA", section 7.3.
    """

    chance: float
    share: Numbers = field(default_factory=list)
    phi: Lists = field(default_factory=list)


@dataclass
class LayerDynamics:
    """One adapted layer over the recorded steps; every list has one entry per step.

    Attributes:
        name: module path.
        shape: `(out_features, in_features)`; an embedding is `(dimension, vocabulary)`, a convolution `(out, in·k·k)`.
        rank: rank of the adapter.
        base_norm: ‖W‖.
        base_energy: lower and upper bound of the share of ‖W‖² in its leading k directions; None if these were skipped.
        relative_norm: ‖ΔW‖ / ‖W‖; None for a zero base weight.
        singular_values: singular values of ΔW, descending, without those that are rounding errors.
        magnitude_change: for DoRA only.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    base_norm: float
    base_energy: tuple[float, float] | None = None
    A_norm: Numbers = field(default_factory=list)
    B_norm: Numbers = field(default_factory=list)
    norm: Numbers = field(default_factory=list)
    relative_norm: Numbers = field(default_factory=list)
    effective_rank: Numbers = field(default_factory=list)
    stable_rank: Numbers = field(default_factory=list)
    singular_values: Lists = field(default_factory=list)
    outputs: SideDynamics | None = None
    inputs: SideDynamics | None = None
    magnitude_change: Numbers | None = None

    def columns(self) -> list[list[Any]]:
        """Every list that grows by one entry per recorded step."""
        sides = [side for side in (self.outputs, self.inputs) if side]
        norms = [self.A_norm, self.B_norm, self.norm, self.relative_norm, self.effective_rank, self.stable_rank]
        magnitude = [] if self.magnitude_change is None else [self.magnitude_change]
        return [
            *norms,
            self.singular_values,
            *magnitude,
            *(column for side in sides for column in (side.share, side.phi)),
        ]


@dataclass
class Dynamics:
    """The history of a training.

    Attributes:
        title: what was trained, for the title of a figure.
        directions: number k of leading singular vectors of each base weight that updates are compared with; 0: none.
        log: logged quantities by step: some of `loss` (nats per token), `learning_rate`, `gradient_norm` and
            `heldout_loss`.
        steps: the recorded optimizer steps, ascending.
        layers: the layers in the order of the model.
        recording_seconds: time of recording, all steps together.
        subspace_seconds: time to find the leading subspaces of the base weights, once.
    """

    title: str = ""
    directions: int = 0
    log: dict[int, dict[str, float | None]] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    layers: list[LayerDynamics] = field(default_factory=list)
    recording_seconds: float = 0.0
    subspace_seconds: float = 0.0

    def logged(self, quantity: str) -> tuple[list[int], list[float]]:
        """The steps for which a quantity was logged, ascending, and its values."""
        entries = sorted((step, row[quantity]) for step, row in self.log.items() if row.get(quantity) is not None)
        return [step for step, _ in entries], [value for _, value in entries if value is not None]

    def forget_after(self, step: int) -> None:
        """Remove everything after a step, from which a run resumes."""
        self.log = {at: row for at, row in self.log.items() if at <= step}
        count = sum(at <= step for at in self.steps)
        for column in (self.steps, *(column for layer in self.layers for column in layer.columns())):
            del column[count:]

    def rounded(self) -> "Dynamics":
        """The record as it is saved, with seven digits, which is all that a resumed run knows of its beginning."""
        return _from_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of `dynamics.json`."""
        steps = sorted(self.log)
        content = {
            "format": FORMAT,
            "title": self.title,
            "directions": self.directions,
            "log": {"step": steps} | {key: [self.log[step].get(key) for step in steps] for key in LOGGED},
            "steps": self.steps,
            "layers": [asdict(layer) for layer in self.layers],
            "seconds": {"recording": self.recording_seconds, "subspaces": self.subspace_seconds},
        }
        return _seven_digits(content)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `path`, or `dynamics.json` in the folder `path`, completely or not at all.

        Raises:
            OutputError: it exists and `force` is not given, or cannot be written.
        """
        file = _file(path)
        with atomic_file(file, force=force) as partial:
            partial.write_text(json.dumps(self.to_json(), allow_nan=False) + "\n", encoding="utf-8")
        return file


def read_dynamics(path: str | Path) -> Dynamics:
    """Read what `Dynamics.save` wrote, from the file or its folder.

    Raises:
        SourceError: there is no such file.
        FileFormatError: it is not a record of a training, or of another format version.
    """
    file = _file(path)
    if not file.exists():
        msg = f"{file} does not exist; expected the {FILE} of a training run"
        raise SourceError(msg)
    content = read_result(file, [FORMAT])
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError) as broken:
        msg = f"{file} is damaged ({type(broken).__name__}: {broken})"
        raise FileFormatError(msg) from broken


def _from_json(content: dict[str, Any]) -> Dynamics:
    log = content["log"]
    rows = zip(log["step"], *(log[key] for key in LOGGED), strict=True)
    dynamics = Dynamics(
        title=content["title"],
        directions=content["directions"],
        log={step: dict(zip(LOGGED, row, strict=True)) for step, *row in rows},
        steps=content["steps"],
        layers=[_layer(entry) for entry in content["layers"]],
        recording_seconds=content["seconds"]["recording"],
        subspace_seconds=content["seconds"]["subspaces"],
    )
    if sum(layer.rank for layer in dynamics.layers) > MOST_RANKS:
        msg = f"its layers have more than {MOST_RANKS:,} ranks together"
        raise ValueError(msg)
    if dynamics.steps != sorted(set(dynamics.steps)):
        msg = "its steps do not ascend"
        raise ValueError(msg)
    for layer in dynamics.layers:
        if any(len(column) != len(dynamics.steps) for column in layer.columns()):
            msg = f"{layer.name} does not have one entry for each of {len(dynamics.steps)} steps"
            raise ValueError(msg)
    return dynamics


def _layer(entry: dict[str, Any]) -> LayerDynamics:
    fields: dict[str, Any] = entry | {"shape": tuple(map(int, entry["shape"])), "rank": int(entry["rank"])}
    fields["base_energy"] = fields["base_energy"] and tuple(fields["base_energy"])
    for side in ("outputs", "inputs"):
        fields[side] = fields[side] and SideDynamics(**fields[side])
    return LayerDynamics(**fields)


def _seven_digits(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _seven_digits(entry) for key, entry in value.items()}
    return [_seven_digits(entry) for entry in value] if isinstance(value, list | tuple) else value


def _file(path: str | Path) -> Path:
    return Path(path) / FILE if Path(path).is_dir() else Path(path)
