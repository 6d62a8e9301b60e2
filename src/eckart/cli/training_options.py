"""Options of `train` that `sweep` has too."""

from typing import Annotated, Literal

import typer

from eckart.cli.options import in_group
from eckart.nn.config import Method

ADAPTER, DATA, OPTIMIZATION = "Adapter", "Data", "Optimization"

BaseDtype = Literal["auto", "float32", "bfloat16"]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A SOURCE: folder, GGUF file, hub name, URL or pkg:NAME.")]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A text file or a folder of them; JSONL, JSON or Parquet with text, with prompt and completion, or with "
        "messages; or a dataset on the hub.",
    ),
]
MethodOption = Annotated[
    Method,
    in_group(ADAPTER, "--method", metavar="lora|dora", help="DoRA also trains the norm of every weight row."),
]
Dropout = Annotated[
    float, in_group(ADAPTER, "--dropout", "--lora-dropout", metavar="SHARE", help="Dropout on the adapter's input.")
]
Quantize = Annotated[
    Literal["nf4"] | None,
    in_group(ADAPTER, "--quantize", metavar="nf4", help="Keep the base model in 4 bits (QLoRA)."),
]
Steps = Annotated[
    int | None, in_group(OPTIMIZATION, "--steps", "--max-steps", metavar="N", help="Number of optimizer steps.")
]
Epochs = Annotated[
    float | None,
    in_group(*(OPTIMIZATION, "--epochs", "--num-train-epochs"), metavar="X", help="Passes over the data. [default: 1]"),
]
BatchSize = Annotated[
    int,
    in_group(
        *(OPTIMIZATION, "--batch-size", "--per-device-train-batch-size"),
        metavar="N",
        help="Sequences per batch, on every device.",
    ),
]
LearningRate = Annotated[
    float, in_group(OPTIMIZATION, "--learning-rate", "--lr", metavar="X", help="Peak learning rate (AdamW).")
]
MaxLength = Annotated[
    int | None,
    in_group(
        *(DATA, "--max-length", "--max-seq-length"),
        metavar="N",
        help="Tokens per sequence. [default: 1024, or the model's limit if that is lower]",
    ),
]
EvalData = Annotated[
    str | None, in_group(DATA, "--eval-data", metavar="DATA", help="Held-out data. [default: 10% of DATA]")
]
DtypeOption = Annotated[
    BaseDtype,
    in_group(
        *(OPTIMIZATION, "--dtype"),
        metavar="auto|float32|bfloat16",
        help="Data type of the base model; factors are always float32.",
    ),
]
