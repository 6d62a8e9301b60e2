"""Texts that every Python environment has: of kinds to calibrate with, held out from these, and of other kinds."""

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 512
FILE_CHARS = 6_000  # of each file, so that no single one decides
HELD_OUT_TOKENS = 4_096  # of each kind


def calibration_texts(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Files of three kinds of text to calibrate with, and held-out text of each kind."""
    from eckart.demo.corpus import language_reference

    reference, code, prose = language_reference(), _split(_modules()), _split(_descriptions())
    kinds = {
        "reference": ("\n\n".join(reference.training.values()), "\n\n".join(reference.held_out.values())),
        "code": code,
        "descriptions": prose,
    }
    for name, (training, _) in kinds.items():
        (folder / f"{name}.txt").write_text(training)
    return [folder / f"{name}.txt" for name in kinds], {name: held_out for name, (_, held_out) in kinds.items()}


def other_texts() -> dict[str, str]:
    """Text of kinds that are not among those to calibrate with."""
    packages = Path(sysconfig.get_paths()["purelib"])
    licenses = [
        file for file in packages.glob("*.dist-info/**/*") if file.name.upper().startswith(("LICEN", "COPYING"))
    ]
    headers = Path(sysconfig.get_paths()["include"]).rglob("*.h")
    return {"licenses": "\n\n".join(_parts(licenses)), "C headers": "\n\n".join(_parts(headers))}


def sequences(text: str, tokenizer) -> "Tensor":
    """Token ids, shape `(sequences, LENGTH)`, spread over the text."""
    import torch

    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[torch.linspace(0, len(rows) - 1, min(len(rows), HELD_OUT_TOKENS // LENGTH)).round().long()]


def _modules() -> list[str]:
    return _parts(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def _descriptions() -> list[str]:
    """What installed packages say about themselves, without the fields above."""
    files = Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA")
    return [body[:FILE_CHARS] for body in (_read(file).partition("\n\n")[2] for file in sorted(files)) if body.strip()]


def _parts(files: Iterable[Path]) -> list[str]:
    """The beginning of each file, every text once."""
    return list(dict.fromkeys(_read(file)[:FILE_CHARS] for file in sorted(files) if file.is_file()))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _split(parts: list[str]) -> tuple[str, str]:
    """Training text and a held-out fifth, in an order that does not depend on the names."""
    ordered = sorted(parts, key=lambda part: hashlib.sha256(part.encode()).digest())
    first = len(ordered) // 5
    return "\n\n".join(ordered[first:]), "\n\n".join(ordered[:first])
