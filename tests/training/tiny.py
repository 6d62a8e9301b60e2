"""A tiny Llama with a chat template, and data in every form: real files, no download."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from eckart.engine.progress import NoProgress

WORDS = ["the", "a", "rank", "of", "weight", "adapter", "low", "high", "noise", "signal", "learns", "is"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + ' <|end|>' }}{% endgeneration %} "
    "{% else %}{{ message['content'] + ' <|end|> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


class Reports(NoProgress):
    """Records what is reported, and may do something after a step of a training."""

    def __init__(self, step=None, act=None):
        self.notes, self.steps, self.details, self.stages = [], [], [], []
        self.step, self.act = step, act

    def start(self, stage, total, unit):
        self.stages.append((stage, total, unit))
        self.done = 0

    def update(self, amount, detail=""):
        self.done += amount
        if self.stages[-1][2] == "steps":
            self.steps.append(self.done)
            self.details.append(detail)
            if self.done == self.step:
                self.act()

    def note(self, message):
        self.notes.append(message)


def write_tiny_llama(folder: Path) -> Path:
    """A model of 2 layers and 16 dimensions that sees 64 tokens, with its tokenizer."""
    torch.manual_seed(0)
    specials = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def words(count: int, seed: int = 0) -> str:
    """Words in which each tells the next but for a little noise: soon learnt."""
    generator = torch.Generator().manual_seed(seed)
    jumps = torch.randint(len(WORDS), (count,), generator=generator)
    noisy = torch.rand(count, generator=generator) < 0.1
    place, told = 0, []
    for jump, noise in zip(jumps.tolist(), noisy.tolist(), strict=True):
        place = jump if noise else (place * 5 + 1) % len(WORDS)
        told.append(WORDS[place])
    return " ".join(told)


def write_lines(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@torch.no_grad()
def loss_of(model, examples) -> float:
    """Mean loss of the labels by hand, in float64."""
    total = count = 0
    for example in examples:
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        rows = model(ids).logits[0, :-1].double().log_softmax(-1)
        for row, label in zip(rows, labels[0, 1:], strict=True):
            if label >= 0:
                total, count = total - row[label].item(), count + 1
    return total / count
