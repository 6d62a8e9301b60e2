"""A record as a training example: token ids, and labels for the tokens that count in the loss."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from eckart.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Messages = list[dict[str, Any]]

FORMS = {"text": ("text",), "prompt and completion": ("prompt", "completion"), "messages": ("messages",)}
IGNORED = -100  # the label that the losses of torch and transformers ignore


def form_of(record: Mapping[str, Any]) -> tuple[str | None, str]:
    """The form of a record, or None and why it has none."""
    forms = [form for form, fields in FORMS.items() if all(record.get(field) is not None for field in fields)]
    if len(forms) == 1:
        return forms[0], ""
    if forms:
        return None, f"has both {' and '.join(forms)}; keep one of them"
    fields = ", ".join(map(str, record)) or "no fields"
    return None, f"has {fields}; expected text, or prompt and completion, or messages"


def content_fault(record: Mapping[str, Any], form: str) -> str | None:
    """What is wrong with the fields of a record of this form."""
    if fault := _encoding_fault({field: record[field] for field in (*FORMS[form], "tools") if field in record}):
        return fault
    if form == "messages":
        fault = _messages_fault(record["messages"], "messages")
        has_answer = not fault and any(message["role"] == "assistant" for message in record["messages"])
        return fault or (None if has_answer else "messages has no message of the assistant to learn from")
    values = [record[field] for field in FORMS[form]]
    if form == "prompt and completion" and all(isinstance(value, list) for value in values):
        faults = [_messages_fault(record[field], field) for field in FORMS[form]]
        return next(filter(None, faults), None)
    for field, value in zip(FORMS[form], values, strict=True):
        if not isinstance(value, str):
            return f"{field} is {_kind(value)}, not text"
        if not value.strip() and field != "prompt":
            return f"{field} is empty"
    return None


def _encoding_fault(fields: Mapping[str, Any]) -> str | None:
    """Why a tokenizer or a template could not take the fields as text."""
    try:
        json.dumps(fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return f"{' or '.join(fields)} has half of a surrogate pair, which is not a character"
    return None


def _messages_fault(messages: object, field: str) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"{field} is {'empty' if messages == [] else _kind(messages)}; expected a list of messages"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {number} of {field} has no role"
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            return f"message {number} of {field} has no text as its content"
    return None


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "missing" if value is None else f"a {type(value).__name__}")


class Encoder:
    """Token ids and labels of records, the same as those of TRL's SFTTrainer (which a test verifies).

    With `answers_only` the loss ignores prompts and all messages that are not the assistant's: a completion starts
    where the tokens of prompt and completion first differ from those of the prompt alone.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, answers_only: bool = True) -> None:
        self.tokenizer = tokenizer
        self.answers_only = answers_only
        self._template: str | None = None
        self._marked: bool | None = None  # whether the template marks the assistant's messages

    def encode(self, record: Mapping[str, Any], form: str) -> tuple[list[int], list[int]]:
        """Ids and labels of equal length, not truncated.

        Raises:
            ValueError: the chat template cannot render the record.
            OptionError: the tokenizer has no chat template.
        """
        if form == "text":
            ids = self._ended(self._ids(record["text"]))
            return ids, list(ids)
        if form == "messages":
            return self._conversation(record["messages"], record.get("tools"))
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, str):
            before, ids = self._ids(prompt), self._ended(self._ids(prompt + completion))
        else:
            before = self._rendered(prompt, record.get("tools"), add_generation_prompt=True)
            ids = self._rendered(prompt + completion, record.get("tools"))
        start = _common_prefix(before, ids) if self.answers_only else 0
        return ids, [IGNORED] * start + ids[start:]

    def _ids(self, text: str) -> list[int]:
        # verbose=False: records longer than the model's window are truncated and counted later.
        return cast("list[int]", self.tokenizer(text, verbose=False)["input_ids"])

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, cast("int", end)]

    def _conversation(self, messages: "Messages", tools: object) -> tuple[list[int], list[int]]:
        if not self.answers_only:
            ids = self._rendered(messages, tools)
            return ids, list(ids)
        if self._marks():
            rendered = self._template_call(messages, tools, return_assistant_tokens_mask=True)
            pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
            return rendered["input_ids"], [token if is_answer else IGNORED for token, is_answer in pairs]
        ids = self._rendered(messages, tools)
        labels = [IGNORED] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._rendered(messages[:index], tools, add_generation_prompt=True) if index else None
                through = self._rendered(messages[: index + 1], tools)
                if before is None or ids[: len(before)] != before or ids[: len(through)] != through:
                    msg = "the chat template does not mark which words are the assistant's here; "
                    msg += "use prompt and completion, or learn from prompts too (`answers_only=False`)"
                    raise ValueError(msg)
                labels[len(before) : len(through)] = ids[len(before) : len(through)]
        return ids, labels

    def _marks(self) -> bool:
        """Whether the template, or TRL's version of it for training, marks the assistant's words."""
        if self._marked is None:
            from trl.chat_template_utils import get_training_chat_template

            self._require_template()
            try:
                self._template = get_training_chat_template(self.tokenizer)
                self._marked = True
            except ValueError:  # TRL has no version of this template
                self._marked = False
        return self._marked

    def _rendered(self, messages: "Messages", tools: object, **options: Any) -> list[int]:
        return self._template_call(messages, tools, **options)["input_ids"]

    def _template_call(self, messages: "Messages", tools: object, **options: Any) -> dict[str, list[int]]:
        self._require_template()
        try:
            return cast(
                "dict[str, list[int]]",
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=cast("list[Any] | None", tools),
                    chat_template=self._template,
                    tokenize=True,
                    return_dict=True,
                    **options,
                ),
            )
        except Exception as error:  # a template is code from the model's authors, and may raise anything
            msg = f"the chat template rejects it ({error})"
            raise ValueError(msg) from error

    def _require_template(self) -> None:
        if not self.tokenizer.chat_template:
            msg = "the model's tokenizer has no chat template, which messages need; use text, or prompt and completion"
            raise OptionError(msg)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    differing = (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(differing, min(len(left), len(right)))
