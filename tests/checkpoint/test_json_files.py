"""JSON from strangers is read as Python reads it, or refused in one sentence that names the file and the field."""

import json

import pytest

from eckart.checkpoint.json_files import parse_json, read_json_object
from eckart.checkpoint.model_config import read_config
from eckart.errors import FileFormatError, SourceError

REFUSED = {
    "not JSON": (b'{"a": }', "Expecting value"),
    "cut short": (b'{"a": [1, 2', "Expecting ',' delimiter"),
    "not UTF-8": (b'{"a": "\xff"}', "can't decode byte"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "can't decode byte"),
    "nested without end": (b"[" * 100_000, "nested more than 64"),
    "nested too deeply": (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64"),
    "a number of many digits": (b'{"a": ' + b"1" * 10_000 + b"}", "a number of 10,000 digits"),
    "a name twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "names 'c' twice"),
    "half of a surrogate pair": (rb'{"a": "\ud800"}', "half of a surrogate pair"),
    "half of a surrogate pair in a name": (rb'{"a\uDC00": 1}', "half of a surrogate pair"),
    "a list": (b"[1]", "expected a JSON object, got list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_json_that_cannot_be_used_is_refused_and_the_file_is_named(case, tmp_path) -> None:
    data, said = REFUSED[case]
    file = tmp_path / "config.json"
    file.write_bytes(data)
    with pytest.raises(FileFormatError, match=said) as caught:
        read_json_object(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_is_too_large_or_missing_is_not_read(tmp_path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b" " * 100)
    with pytest.raises(FileFormatError, match="100 bytes is too large, expected at most 99"):
        read_json_object(file, most_bytes=99)
    with pytest.raises(SourceError, match="No such file"):
        read_json_object(tmp_path / "none.json")


@pytest.mark.parametrize(
    "text", ['{"a": [1, -2.5e-300, true, null, "\\ud83d\\ude00", {"b": {}}]}', '{"limit": Infinity}', '\ufeff{"a": 1}']
)
def test_json_that_python_writes_is_read(text) -> None:
    assert parse_json(text.encode()) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": 5}, "architectures: expected a list of class names, got 5"),
        ({"architectures": ["LlamaForCausalLM", None]}, "architectures: expected a list of class names"),
        ({"hidden_size": [1]}, "hidden_size: expected a number, got "),
        ({"text_config": {"hidden_size": "64"}}, "text_config.hidden_size: expected a number, got '64'"),
        ({"model_type": {}}, "model_type: expected a text, got {}"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false, got 'no'"),
        ({"max_position_embeddings": 1e6}, "max_position_embeddings: expected a number of tokens"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected a number up to 10,000, got 1000000000"),
    ],
)
def test_a_config_field_of_another_type_is_refused_by_name(fields, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(FileFormatError) as caught:
        read_config(tmp_path)
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)
