"""DATA in every form: what sequences it gives, what is refused and why."""

import functools
import itertools
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from eckart.errors import EckartError, FileFormatError, MissingExtraError, OptionError, SourceError
from eckart.training import DataOptions, load_data
from eckart.training.examples import IGNORED, Encoder

from .tiny import MARKED_TEMPLATE, WORDS, words, write_lines

SHORT = DataOptions(max_length=32)
PAIR = {"prompt": "the rank of ", "completion": "a weight is low"}
TALK = {
    "messages": [
        {"role": "user", "content": "the rank"},
        {"role": "assistant", "content": "is low"},
        {"role": "user", "content": "a weight"},
        {"role": "assistant", "content": "learns noise"},
    ]
}
FORMS = {"text": {"text": "the rank is low"}, "prompt and completion": PAIR, "messages": TALK}


def said(tokenizer, labels) -> str:
    return tokenizer.decode([label for label in labels if label != IGNORED])


def test_a_text_is_cut_into_windows_and_its_end_is_held_out(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(words(1000))
    data = load_data(path, tokenizer, options=SHORT)
    train, held = ([token for ids in part["input_ids"] for token in ids] for part in (data.train, data.held_out))
    assert [token for token in train + held if token != tokenizer.eos_token_id] == tokenizer(words(1000))["input_ids"]
    assert len(held) == pytest.approx(100, abs=10)
    assert {len(ids) for ids in data.train["input_ids"][:-1]} == {32}
    assert data.train["labels"][:] == data.train["input_ids"][:]
    assert data.form == "texts"


def test_held_out_texts_that_were_trained_on_are_noted(tmp_path, tokenizer):
    text = words(1300)
    texts = {"data.txt": text, "seen.txt": " ".join(text.split()[900:1100]), "unseen.txt": words(200, 3)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    options = DataOptions(max_length=40)
    for name, is_seen in (("seen.txt", True), ("unseen.txt", False)):
        data = load_data(tmp_path / "data.txt", tokenizer, options=options, held_out=tmp_path / name)
        most = len(data.held_out)
        assert most - 1 <= data.overlap <= most if is_seen else data.overlap == 0
        note = f"{data.overlap} of {most} held-out sequences are in the training data: what is measured on them is no"
        assert [each.startswith(note) for each in data.notes] == ([True] if is_seen else [])
    assert load_data(tmp_path / "data.txt", tokenizer, options=options).overlap == 0


def test_held_out_records_that_were_trained_on_are_noted(tmp_path, tokenizer):
    rows = [{"prompt": " ".join((*pair, "")), "completion": "low"} for pair in itertools.permutations(WORDS[:5], 2)]
    data = load_data([*rows, *rows[:4]], tokenizer, options=SHORT, held_out=[rows[2], {**PAIR}])
    assert data.overlap == 1
    assert load_data(rows, tokenizer, options=SHORT).overlap == 0
    assert load_data(rows * 5, tokenizer, options=SHORT).overlap == len(load_data(rows * 5, tokenizer).held_out)


def test_every_text_of_a_folder_gives_its_own_end(tmp_path, tokenizer):
    for name, word in (("a.txt", "rank"), ("b.md", "noise"), (".hidden", "signal")):
        (tmp_path / name).write_text(f"{word} " * 200)
    data = load_data(tmp_path, tokenizer, options=SHORT)
    held = [token for ids in data.held_out["input_ids"] for token in ids]
    assert tokenizer.decode(held).split() == ["rank"] * 20 + ["</s>"] + ["noise"] * 20 + ["</s>"]


def test_a_large_text_is_read_in_pieces_that_lose_nothing(tmp_path, tokenizer, monkeypatch):
    from eckart.training import texts

    path = tmp_path / "text.txt"
    path.write_text("\n".join(words(50, seed) + " ünïcödé" for seed in range(20)) + "\n" + "é" * 3000)
    whole = load_data(path, tokenizer, options=SHORT)
    monkeypatch.setattr(texts, "PIECE_BYTES", 997)
    pieces = "".join(piece for part in ("train", "held_out") for piece in texts.pieces(path, 500, part))
    assert pieces == path.read_text()
    assert load_data(path, tokenizer, options=SHORT).train["input_ids"][:20] == whole.train["input_ids"][:20]


def test_a_tokenizer_that_opens_texts_opens_every_window(text, tokenizer):
    tokenizer._tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    data = load_data(text, tokenizer, options=SHORT)
    assert all(ids[0] == 1 and 1 not in ids[1:] for ids in data.train["input_ids"])


@pytest.mark.parametrize("ending", ["jsonl", "array.json", "lines.json", "parquet", "memory", "hub"])
@pytest.mark.parametrize("form", FORMS)
def test_records_give_the_same_sequences_from_every_kind_of_file(form, ending, tmp_path, tokenizer, monkeypatch):
    records = [FORMS[form]] * 10
    path = tmp_path / f"data.{ending}"
    source = path
    if ending == "parquet":
        extra = [record | {"id": place} for place, record in enumerate(records)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(extra), path)
    elif ending == "array.json":
        path.write_text(json.dumps(records, indent=1))
    elif ending == "memory":
        source = records
    elif ending == "hub":
        import datasets

        asked = []
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *a, **o: asked.append((a, o)) or datasets.Dataset.from_list(records)
        )
        source = "org/name@v2"
    else:
        write_lines(path, records)
    data = load_data(source, tokenizer, options=SHORT)
    assert (len(data.train), len(data.held_out), data.form) == (9, 1, form)
    ids, labels = Encoder(tokenizer).encode(FORMS[form], form)
    assert data.train[0] == {"input_ids": ids, "labels": labels} == data.held_out[0]
    if ending == "hub":
        assert asked == [(("org/name",), {"split": "train", "revision": "v2"})]


def test_what_is_not_to_be_learnt_is_out_of_the_loss(tokenizer):
    assert said(tokenizer, Encoder(tokenizer).encode(PAIR, "prompt and completion")[1]) == "a weight is low </s>"
    talk = Encoder(tokenizer).encode(TALK, "messages")[1]
    assert said(tokenizer, talk) == "is low <|end|> learns noise <|end|>"
    for form in ("prompt and completion", "messages"):
        ids, labels = Encoder(tokenizer, answers_only=False).encode(FORMS[form], form)
        assert ids == labels


@pytest.mark.parametrize("template", ["plain", "marked"])
@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("text", FORMS["text"]),
        ("prompt and completion", PAIR),
        ("prompt and completion", {"prompt": TALK["messages"][:1], "completion": TALK["messages"][1:2]}),
        ("messages", TALK),
    ],
)
def test_ids_and_labels_are_those_of_trl(form, record, template, tokenizer, tiny):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    if template == "marked":
        tokenizer.chat_template = MARKED_TEMPLATE
    marked = form == "messages" and template == "marked"
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny),
        SFTConfig(str(tiny), assistant_only_loss=marked, use_cpu=True, bf16=False, activation_checkpointing=False),
        train_dataset=Dataset.from_list([record]),
        processing_class=tokenizer,
    ).train_dataset[0]
    ids, labels = Encoder(tokenizer, answers_only=form != "messages" or marked).encode(record, form)
    assert (ids, labels) == (theirs["input_ids"], theirs["labels"])


def test_without_marks_in_the_template_the_assistants_words_are_the_same(tokenizer):
    plain = Encoder(tokenizer).encode(TALK, "messages")
    tokenizer.chat_template = MARKED_TEMPLATE
    assert Encoder(tokenizer).encode(TALK, "messages") == plain


def test_records_that_are_too_long_lose_their_end_and_are_counted(tmp_path, tokenizer):
    records = [
        *[PAIR] * 18,
        {"prompt": "the ", "completion": words(60)},
        {"prompt": words(60) + " ", "completion": "is low"},
    ]
    data = load_data(write_lines(tmp_path / "d.jsonl", records), tokenizer, options=SHORT)
    assert max(map(len, [*data.train["input_ids"], *data.held_out["input_ids"]])) == 32
    assert (data.cut, data.dropped, len(data.train) + len(data.held_out)) == (1, 1, 19)
    assert len(data.notes) == 3  # also that the held-out records are among those to train on


def test_packed_records_keep_their_lengths_and_labels(tmp_path, tokenizer):
    path = write_lines(tmp_path / "d.jsonl", [PAIR] * 20)
    packed = load_data(path, tokenizer, options=DataOptions(max_length=32, packing=True))
    ids, labels = Encoder(tokenizer).encode(PAIR, "prompt and completion")
    assert packed.train[0]["seq_lengths"] == [len(ids)] * 4
    assert packed.train[0]["labels"] == labels * 4
    assert packed.records == 18
    assert packed.held_out[0]["labels"] == labels


def test_the_draw_of_what_is_held_out_follows_the_seed(tmp_path, tokenizer):
    records = [{"text": f"the {words(5, seed)}"} for seed in range(40)]
    path = write_lines(tmp_path / "d.jsonl", records)
    drawn = [
        load_data(path, tokenizer, options=DataOptions(max_length=32, seed=seed)).held_out["input_ids"][:]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 4


def test_data_of_their_own_are_held_out_whole(tmp_path, tokenizer, text):
    path = write_lines(tmp_path / "d.jsonl", [PAIR] * 3)
    data = load_data(text, tokenizer, options=SHORT, held_out=path)
    assert len(data.held_out) == 3
    assert [t for ids in data.train["input_ids"] for t in ids][:-1] == tokenizer(text.read_text())["input_ids"]


DEEP = functools.reduce(lambda inner, _: [inner], range(5000), "a")
MALFORMED = {
    '{"text": "the rank"': "line 2: not JSON (Expecting ',' delimiter at column 20)",
    '["text"]': "line 2: a list, not an object",
    '{"question": "?", "answer": "!"}': "line 2: has question, answer; expected text, or prompt and completion, or",
    '{"text": "a", "messages": []}': "line 2: has both text and messages; keep one of them",
    '{"text": ""}': "line 2: text is empty",
    '{"text": 3}': "line 2: text is a number, not text",
    '{"prompt": "a", "completion": " "}': "line 2: completion is empty",
    '{"prompt": ["a"], "completion": "b"}': "line 2: prompt is a list, not text",
    '{"messages": []}': "line 2: messages is empty",
    '{"messages": "hello"}': "line 2: messages is a str; expected a list of messages",
    '{"messages": [{"content": "a"}]}': "line 2: message 1 of messages has no role",
    '{"messages": [{"role": "assistant"}]}': "line 2: message 1 of messages has no text as its content",
    '{"messages": [{"role": "user", "content": "a"}]}': "line 2: messages has no message of the assistant",
    '{"messages": [{"role": "assistant", "content": "a"}]}': "line 2: the chat template does not mark which words",
    '{"text": "\\ud800"}': "line 2: not usable JSON (a text has half of a surrogate pair)",
    '{"text": "a", "score": ' + "1" * 10_000 + "}": "line 2: not usable JSON (a number of 10,000 digits)",
    '{"text": ' + "[" * 100 + "]" * 100 + "}": "line 2: not usable JSON (nested more than 64 levels deep)",
    '{"prompt": "the ", "completion": "rank"}': "line 2: has prompt and completion, those before it text",
}


@pytest.mark.parametrize(("line", "reason"), MALFORMED.items())
def test_a_malformed_record_is_refused_with_its_line_and_reason(line, reason, tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    first = '{"text": "the rank"}' if "those before" in reason or line.startswith("[") else ""
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(FileFormatError) as refusal:
        load_data(path, tokenizer, options=SHORT)
    assert f"d.jsonl {reason}" in str(refusal.value)


def test_all_faults_are_reported_the_first_dozen_in_full(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([f'{{"{"a" * i}": }}' for i in range(20)] + ['{"text": "the rank"}'] * 20))
    with pytest.raises(FileFormatError) as refusal:
        load_data(path, tokenizer, options=SHORT)
    assert str(refusal.value).count("not JSON") == 12
    assert "and 8 more" in str(refusal.value)


def test_what_the_chat_template_refuses_is_reported_with_its_position(tmp_path, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(FileFormatError, match=r"line 1: the chat template rejects it \(roles must alternate\)"):
        load_data(write_lines(tmp_path / "d.jsonl", [TALK]), tokenizer, options=SHORT)
    tokenizer.chat_template = None
    with pytest.raises(OptionError, match="has no chat template"):
        load_data(write_lines(tmp_path / "d.jsonl", [TALK]), tokenizer, options=SHORT)


@pytest.mark.parametrize(
    "record",
    [{"text": "\ud800"}, {"messages": [{"role": "assistant", "content": "\udc00"}]}, {"text": DEEP}],
    ids=["text", "message", "deep"],
)
def test_records_in_memory_that_are_no_text_are_refused(record, tokenizer):
    with pytest.raises(FileFormatError, match=r"record 1: (\w+ has half of a surrogate pair|nested too deeply)"):
        load_data([record] * 3, tokenizer, options=SHORT)


def write_bytes(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("nothing.txt", None, (SourceError, "no such file or folder")),
        ("empty.txt", b"", (EckartError, "nothing is left to train on")),
        ("empty.jsonl", b"\n\n", (EckartError, "nothing is left to train on")),
        ("short.txt", b"rank", (EckartError, "nothing is left to hold out")),
        ("one.jsonl", b'{"text": "the rank"}', (EckartError, "nothing is left to train on")),
        ("latin.txt", b"the rank\nb\xfcrger", (FileFormatError, r"not UTF-8 text \(line 2\)")),
        ("latin.jsonl", b'{"text": "b\xfcrger"}', (FileFormatError, "line 1: not UTF-8 text")),
        ("broken.parquet", b"PAR1 and then nothing", (FileFormatError, "not a readable Parquet file")),
        ("broken.json", b'[{"text": "a"},', (FileFormatError, "not JSON")),
    ],
)
def test_data_that_cannot_be_used_are_refused(name, content, refused, tmp_path, tokenizer):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    error, reason = refused
    with pytest.raises(error, match=reason):
        load_data(path, tokenizer, options=SHORT)


def test_a_folder_of_texts_and_records_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the rank")
    write_lines(tmp_path / "b.jsonl", [PAIR])
    with pytest.raises(SourceError, match=r"contains records \(b.jsonl\) and other files \(a.txt\)"):
        load_data(tmp_path, tokenizer, options=SHORT)


def test_columns_that_no_form_has_are_named(tmp_path, tokenizer):
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), tmp_path / "d.parquet")
    with pytest.raises(FileFormatError, match="has the columns question, answer; expected text, or prompt"):
        load_data(tmp_path / "d.parquet", tokenizer, options=SHORT)


def test_a_dataset_that_the_hub_does_not_give_is_refused_in_our_words(tokenizer):
    with pytest.raises(SourceError, match="the hub provides no such dataset"):
        load_data("no-such-org/no-such-data", tokenizer, options=SHORT)


def test_without_datasets_the_extra_is_named(monkeypatch, text, tokenizer):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'train' extra: pip install '"):
        load_data(text, tokenizer, options=SHORT)


def test_options_that_cannot_be_met_are_refused_together():
    with pytest.raises(OptionError) as refusal:
        DataOptions(max_length=1, held_out=1.0)
    assert all(word in str(refusal.value) for word in ("max_length", "held_out"))


def test_the_files_go_with_the_data(text, tokenizer):
    from pathlib import Path

    data = load_data(text, tokenizer, options=SHORT)
    file = Path(data.train.cache_files[0]["filename"])
    assert file.exists()
    del data
    assert not file.exists()
