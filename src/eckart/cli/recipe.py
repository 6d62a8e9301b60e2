"""A recipe: a chain of commands in YAML, with the command line's names, checked against the commands themselves.

A recipe is a list whose items name one command each: `- extract: {base: base, tuned: tuned, rank: 8, output: adapter}`.
Every value is text until the command's own parser reads it, so YAML decides about no type.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eckart.errors import FileFormatError, OptionError, SourceError

MOST_BYTES = 2**20
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
LEFT_OUT = {"debug", "help"}  # of the program rather than of a step
NOT_A_STEP = {"run"}

Commands = Mapping[str, Any]
"""The program's commands by name, as typer made them."""


@dataclass(frozen=True)
class Step:
    """One command of a recipe.

    Attributes:
        command: its name.
        values: what each option or argument was given, as text, by the key in the recipe.
        line: where it begins in the file.
        lines: of each key.
    """

    command: str
    values: dict[str, list[str]]
    line: int = 1
    lines: dict[str, int] = field(default_factory=dict)

    def argv(self, command: Any) -> list[str]:
        """The step as the arguments of its command."""
        options: list[str] = []
        arguments: dict[str, list[str]] = {}
        parameters = keys_of(command)
        for key, values in self.values.items():
            parameter = parameters[key]
            if parameter.param_type_name == "argument":
                arguments[parameter.name] = values
            elif parameter.is_flag:
                options += [_flag(parameter)] * (values == ["true"])
            else:
                options += [f"{_flag(parameter)}={value}" for value in values]
        in_order = [value for each in command.params for value in arguments.get(each.name, ())]
        return [*options, "--", *in_order]

    def output(self) -> str | None:
        """Where it writes."""
        return next(iter(self.values.get("output", ())), None)


def keys_of(command: Any) -> dict[str, Any]:
    """The parameters of a command by every key that a recipe may use: flags without dashes, arguments in lower case."""
    keys: dict[str, Any] = {}
    for parameter in command.params:
        if parameter.name in LEFT_OUT:
            continue
        names = [key_of(parameter), parameter.name.replace("_", "-")]
        names += [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
        for name in names:
            keys.setdefault(name, parameter)
    return keys


def key_of(parameter: Any) -> str:
    """The key that a recipe written by eckart uses."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).removesuffix("...").lower()
    return _flag(parameter).removeprefix("--")


def read_recipe(path: Path, commands: Commands) -> list[Step]:
    """The steps of a recipe, whose keys all exist; values are checked when the commands parse them.

    Raises:
        SourceError: the file cannot be read.
        FileFormatError: it is not such a recipe; all faults with their lines.
    """
    import yaml

    root = _composed(path)
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        msg = f"{path}: expected a list of steps, such as `- extract: {{base: …, tuned: …, output: …}}`"
        raise FileFormatError(msg)
    faults: list[str] = []
    steps = [step for node in root.value if (step := _step(node, commands, faults)) is not None]
    if faults:
        msg = f"{path} is not a valid recipe"
        raise FileFormatError.listing(msg, faults)
    return steps


def with_settings(steps: Sequence[Step], settings: Sequence[str], commands: Commands) -> list[Step]:
    """The steps after `KEY=VALUE` (in every step that has KEY) and `STEP.KEY=VALUE` (a command's name, or a number).

    Raises:
        OptionError: no step has the key, or its form is another; all faults.
    """
    faults = []
    for setting in settings:
        name, separator, value = setting.partition("=")
        where, _, key = name.rpartition(".")
        key = key.replace("_", "-")
        chosen = [step for number, step in enumerate(steps, 1) if where in ("", step.command, str(number))]
        if not where:
            chosen = [step for step in chosen if key in step.values]
        if not (separator and key and value):
            faults.append(f"{setting!r}: expected KEY=VALUE or STEP.KEY=VALUE")
        elif not chosen:
            stated = [*(key for step in steps for key in step.values), *(step.command for step in steps)]
            missing = f"is {where!r}{_nearest(where, stated)}" if where else f"has {key!r}{_nearest(key, stated)}"
            faults.append(f"{setting!r}: no step {missing}")
        for step in chosen:
            keys = keys_of(commands[step.command])
            if key in keys:
                step.values[key] = [value]
            else:
                faults.append(f"{setting!r}: {step.command} has no {key!r}{_nearest(key, keys)}")
    if faults:
        msg = "settings that this recipe cannot take"
        raise OptionError.listing(msg, faults)
    return list(steps)


def to_yaml(steps: Sequence[Step], shown: Callable[[str, str], str] = lambda _, value: value) -> str:
    """The recipe in YAML.

    Args:
        steps: its steps.
        shown: of a key and a value, the value to write.
    """
    import yaml

    def scalar(key: str, text: str) -> Any:
        text = shown(key, text)
        number = NUMBER.fullmatch(text) and (float(text) if "." in text else int(text))
        return number if number is not None and str(number) == text else text == "true" or text

    content = [
        {
            step.command: {
                key: scalar(key, values[0]) if len(values) == 1 else [scalar(key, value) for value in values]
                for key, values in step.values.items()
            }
        }
        for step in steps
    ]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10**6)


def step_of(context: Any) -> Step:
    """The step that a parsed command line is.

    Args:
        context: of the command, with its arguments in `meta` as its parser left them.
    """
    given, _, _ = context.command.make_parser(context).parse_args(args=list(context.meta[ARGUMENTS]))
    values: dict[str, list[str]] = {}
    for parameter in context.command.params:
        value = given.get(parameter.name)
        if value in (None, (), []) or parameter.name in LEFT_OUT:
            continue
        several = value if isinstance(value, list | tuple) else [value]
        values[key_of(parameter)] = ["true" if each is True else str(each) for each in several]
    return Step(context.command.name, values)


ARGUMENTS = "eckart.arguments"  # in the context's `meta`: the command line as it was typed


def _composed(path: Path) -> Any:
    """The nodes of a YAML file, none of which becomes an object."""
    import yaml

    try:
        if path.stat().st_size > MOST_BYTES:
            msg = f"{path} has more than {MOST_BYTES >> 20} MiB, which is no recipe"
            raise FileFormatError(msg)
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}); expected a recipe in YAML"
        raise SourceError(msg) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        msg = f"{path}, line {mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}"
        raise FileFormatError(msg) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{path} is not YAML: {str(error).splitlines()[0]}"
        raise FileFormatError(msg) from None


def _step(node: Any, commands: Commands, faults: list[str]) -> Step | None:
    """One step, or None after its faults were added."""
    import yaml

    line = node.start_mark.line + 1
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    if len(pairs) != 1 or not isinstance(pairs[0][0], yaml.ScalarNode):
        faults.append(f"line {line}: expected one command with its options below it, such as `extract:`")
        return None
    name, content = pairs[0][0].value, pairs[0][1]
    if name not in commands or name in NOT_A_STEP:
        faults.append(f"line {line}: unknown command {name!r}{_nearest(name, set(commands) - NOT_A_STEP)}")
        return None
    if not isinstance(content, yaml.MappingNode):
        faults.append(f"line {line}: {name} needs its options, one `key: value` a line")
        return None
    step, keys = Step(name, {}, line), keys_of(commands[name])
    for key_node, value_node in content.value:
        line, key = key_node.start_mark.line + 1, str(key_node.value).replace("_", "-")
        parameter = keys.get(key)
        if parameter is None:
            faults.append(f"line {line}: unknown key {key!r} of {name}{_nearest(key, keys)}")
            continue
        same = next((known for known in step.values if keys[known] is parameter), None)
        values = list(_values(value_node))
        if same is not None:
            faults.append(f"line {line}: {key!r} of {name} is given again")
        elif fault := _value_fault(values, parameter):
            faults.append(f"line {line}: {key!r} of {name} {fault}")
        else:
            step.values[key], step.lines[key] = [value for value in values if value is not None], line
    return step


def _values(node: Any) -> Iterator[str | None]:
    """The texts of a scalar or of a list of scalars; None for anything else."""
    import yaml

    for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        is_text = isinstance(each, yaml.ScalarNode) and not each.tag.endswith(":null")
        yield each.value if is_text else None


def _value_fault(values: Sequence[str | None], parameter: Any) -> str | None:
    """Why a parameter cannot take values."""
    several = getattr(parameter, "multiple", False) or parameter.nargs == -1
    if not values or None in values:
        return "must be a value" + (", or a list of values" if several else "")
    if len(values) > 1 and not several:
        return "takes one value, not a list"
    if getattr(parameter, "is_flag", False) and values[0] not in ("true", "false"):
        return f"is true or false, got {values[0]!r}"
    return None


def _nearest(name: str, known: Any) -> str:
    close = get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _flag(parameter: Any) -> str:
    return next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
