"""What the page needs of each result file; the names and types are those of the results' `to_json`."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from eckart.checkpoint.result_files import Bounds, Count, Finite, Shape, SkippedItem

Scalar = str | bool | int | Finite | None


class _Losses(TypedDict):
    step: list[Count]
    loss: list[Finite]


class _Run(TypedDict):
    model: NotRequired[str | None]
    config: NotRequired[dict[str, Scalar | list[Scalar] | dict] | None]
    settings: NotRequired[dict[str, Scalar | list[Scalar] | dict] | None]
    options: NotRequired[dict[str, Scalar | list[Scalar] | dict] | None]


class StoredTraining(TypedDict):
    """`train.json`."""

    trainable_params: Count
    total_params: Count
    steps: Count
    heldout_loss_before: Finite
    heldout_loss_after: Finite
    heldout_tokens: Count
    seconds: Finite
    peak_bytes: Count
    losses: _Losses
    run: _Run


class _About(TypedDict):
    model: str


class _Setting(TypedDict):
    rank: Count
    target: str
    params: Count
    loss: Finite
    standard_error: Finite | None
    lowest: Finite
    highest: Finite
    seeds: Count


class _Cell(TypedDict):
    rank: Count
    target: str
    seed: Count
    loss: Finite | None
    seconds: Finite | None
    peak_bytes: Count | None
    error: str | None


class _Spot(TypedDict):
    rank: Count
    target: str
    params: Count
    noise: Finite | None
    probability: Finite | None


class StoredSweep(TypedDict):
    """`sweep.json`."""

    about: _About
    base_loss: Finite | None
    heldout_tokens: Count | None
    settings: list[_Setting]
    cells: list[_Cell]
    sweet_spot: _Spot | None


class _Gain(TypedDict):
    base_loss: Finite
    tuned_loss: Finite
    adapter_loss: Finite
    gain_recovered: Finite | None


class _Layer(TypedDict):
    name: str
    shape: Shape
    rank: Count
    error: Finite
    error_lower_bound: Finite


class StoredExtraction(TypedDict):
    """`extract.json`."""

    params: Count
    bytes: Count
    error: Finite
    error_lower_bound: Finite
    eval: NotRequired[_Gain | None]
    distill: NotRequired[dict | None]
    layers: list[_Layer]


class _Total(TypedDict):
    norm_a: Finite
    norm_b: Finite
    norm_difference: Finite
    cosine: Finite | None
    seconds: Finite


class _Unpaired(TypedDict):
    name: str
    side: Literal["a", "b"]
    norm: Finite


class _Alignment(TypedDict):
    phi: list[list[Finite]]
    chance: list[list[Finite]]


class _Intruders(TypedDict):
    found: list


class _Compared(TypedDict):
    name: str
    shape: Shape
    norm_a: Finite
    norm_b: Finite
    cosine: Finite | None
    outputs: _Alignment | None
    inputs: _Alignment | None
    intruders: list[_Intruders] | None


class StoredComparison(TypedDict):
    """`comparison.json` of two adapters or checkpoints."""

    kind: Literal["adapters", "checkpoints", "updates"]
    a: str
    b: str
    base: str | None
    total: _Total
    unpaired: list[_Unpaired]
    matrices: list[_Compared]


class _Checked(TypedDict):
    name: str
    shape: Shape
    verdict: str
    ulps: Finite | None
    error: Finite | None
    weight: Bounds | None


class StoredMergeCheck(TypedDict):
    """`comparison.json` of a merge."""

    kind: Literal["merge"]
    merged: str
    base: str
    adapters: list[str]
    weights: list[Finite]
    verdict: Literal["equal", "rounding", "other weight", "not merged", "undecided", "differs"]
    weight: Bounds | None
    matrices: list[_Checked]
    altered: list[str]
    faults: list[str]
    not_checked: list[SkippedItem]
    unchanged: Count


StoredPair = Annotated[StoredComparison | StoredMergeCheck, Field(discriminator="kind")]
