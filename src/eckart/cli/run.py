"""`eckart run`: a recipe, checked as a whole before its first step."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eckart.cli.options import EXECUTION, RESULT, Debug, in_group

if TYPE_CHECKING:
    from eckart.cli.recipe import Step

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file with a list of commands.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change an option in every step that states it, or of one step: resize.rank=4, 2.rank=4. Repeatable.",
    ),
]
NoResume = Annotated[
    bool, in_group(EXECUTION, "--no-resume", help="Run finished steps again instead of keeping their outputs.")
]
DryRun = Annotated[bool, in_group(RESULT, "--dry-run", "-n", help="Check the recipe and show its steps.")]


def run(
    context: typer.Context,
    recipe: Recipe,
    *,
    settings: Settings = None,
    no_resume: NoResume = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Run a chain of commands from a YAML file, after checking all of it.

    A recipe is a list of commands with the options of the command line, without dashes; arguments have their names from
    the help, in lower case. eckart --dump-recipe COMMAND … prints the recipe of a command line. Paths are relative to
    the current folder. Each output's README.md contains the recipe. When the same recipe is run again, finished steps
    are kept.

    \b
    $ eckart --dump-recipe extract base tuned -o recipe-full --rank 8 > recipe.yaml
    $ eckart --dump-recipe resize recipe-full -o recipe-small --rank 2 >> recipe.yaml
    $ eckart run recipe.yaml --set resize.rank=4 --dry-run
    eckart extract --rank=8 --output=recipe-full -- base tuned
    eckart resize --rank=4 --output=recipe-small -- recipe-full
    """  # noqa: D301
    import shlex

    from eckart.cli.output import note
    from eckart.cli.recipe import read_recipe, to_yaml, with_settings
    from eckart.operations.card import RECIPE

    group = context.parent.command if context.parent else None
    commands = getattr(group, "commands", {})
    steps = with_settings(read_recipe(recipe, commands), settings or (), commands)
    contexts = _checked(recipe, steps, context, commands, no_resume=no_resume)
    lines = [shlex.join(["eckart", step.command, *step.argv(commands[step.command])]) for step in steps]
    if dry_run:
        return typer.echo("\n".join(lines))
    text = to_yaml(steps, _shown_in(steps))
    for number, (step, step_context) in enumerate(zip(steps, contexts, strict=True), 1):
        where = f"step {number} of {len(steps)}"
        if not no_resume and _is_finished(steps, number):
            note(f"{where}: {step.output()} was written by this step and is kept")
            continue
        note(f"{where}: {lines[number - 1]}")
        token = RECIPE.set((f"Step {number} of {len(steps)} of the recipe {_digest(steps, number)}:", text))
        try:
            with step_context:
                step_context.command.invoke(step_context)
        finally:
            RECIPE.reset(token)
    return None


def _checked(
    recipe: Path, steps: "Sequence[Step]", context: typer.Context, commands: Mapping[str, Any], *, no_resume: bool
) -> list[Any]:
    """The parsed context of every step; the plan of those that need no earlier output is made once, from headers.

    Raises:
        FileFormatError: an option is invalid, an output exists, or a plan is refused; all faults with their lines.
    """
    from eckart.cli.command import DEBUG
    from eckart.cli.flags import running, with_flags
    from eckart.errors import EckartError, FileFormatError

    contexts, faults, outputs = [], [], []
    debug = context.meta.get(DEBUG, False)
    usage_error: Any = typer.BadParameter.__mro__[1]
    for number, step in enumerate(steps, 1):
        command, output = commands[step.command], step.output()
        try:
            contexts.append(command.make_context(step.command, step.argv(command), parent=context.parent))
        except usage_error as error:
            line = step.lines.get(_key(step, command, getattr(error, "param", None)), step.line)
            faults.append(f"line {line}: {step.command}: {error.format_message()}")
            continue
        is_finished = not no_resume and _is_finished(steps, number)
        if output in outputs:
            faults.append(f"line {step.line}: {step.command} writes {output}, which an earlier step writes")
        elif output and Path(output).exists() and step.values.get("force") != ["true"] and not is_finished:
            faults.append(f"line {step.line}: {output} exists; choose another output, or add 'force: true'")
        elif "dry_run" in contexts[-1].params and not is_finished and not _reads(step, outputs):
            planned = {**contexts[-1].params, "dry_run": True, "as_json": True}
            try:
                with contexts[-1], running(contexts[-1]), redirect_stdout(StringIO()):
                    contexts[-1].invoke(command.callback, **planned)
            except EckartError as error:
                with running(contexts[-1]):
                    faults.append(f"line {step.line}: {step.command}: {with_flags(str(error))}")
        outputs += [output] if output else []
    context.meta[DEBUG] = debug  # which the steps' own parsers set too: contexts of one program share it
    if faults:
        msg = f"{recipe} cannot be run"
        raise FileFormatError.listing(msg, faults)
    return contexts


def _key(step: "Step", command: Any, parameter: Any) -> str:
    """The key in the recipe of a parameter."""
    from eckart.cli.recipe import keys_of

    keys = keys_of(command)
    return next((key for key in step.values if keys[key] is parameter), "")


def _reads(step: "Step", outputs: Sequence[str]) -> bool:
    """Whether a step reads what an earlier one writes."""
    values = [Path(value) for key, each in step.values.items() if key != "output" for value in each]
    return any(value.is_relative_to(output) for value in values for output in outputs)


def _digest(steps: "Sequence[Step]", number: int) -> str:
    """What identifies a step with all before it."""
    from eckart.cli.recipe import to_yaml

    return hashlib.sha256(to_yaml(steps[:number]).encode()).hexdigest()[:16]


def _is_finished(steps: "Sequence[Step]", number: int) -> bool:
    """Whether the output of a step exists, and its card names this step."""
    from eckart.operations.card import card_of

    output = steps[number - 1].output()
    return output is not None and f"of the recipe {_digest(steps, number)}:" in card_of(Path(output))


def _shown_in(steps: "Sequence[Step]") -> Any:
    """The values of a recipe without what they say of this machine."""
    from eckart.cli.command_line import shown_value
    from eckart.operations.card import shown_name

    outputs = {output for step in steps if (output := step.output())}
    return lambda _, value: shown_name(value) if value in outputs else shown_value(value)
