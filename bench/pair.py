"""The real pair that the comparisons run on: SmolLM2-135M-Instruct and a full fine-tune of it, both bfloat16."""

from pathlib import Path

STEPS = 120


def get_pair(folder: Path) -> tuple[Path, Path]:
    """Folders of base and fine-tune under `folder`; missing ones are created first, in about half an hour."""
    base, tuned = folder / "base", folder / "tuned"
    if not (base.is_dir() and tuned.is_dir()):
        from eckart.demo.pair import make_pair
        from eckart.training import FinetuneSettings

        make_pair(folder, FinetuneSettings(steps=STEPS))
    return base, tuned
