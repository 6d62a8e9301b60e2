"""Model cards: every output has one, which the hub's own parser reads and which says nothing of this machine."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import eckart
from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import OutputError
from eckart.operations.card import COMMAND, code, license_of, shown_name, write_card
from eckart.operations.conversion import convert
from eckart.operations.merging.unmerge import unmerge

pytestmark = pytest.mark.filterwarnings("ignore")

LAYER = "model.layers.0.self_attn.q_proj"
OPERATIONS = {
    "extract": lambda pair, a, out: eckart.extract(pair / "base", pair / "tuned", rank=2, output=out),
    "resize": lambda pair, a, out: eckart.resize(a, rank=2, output=out),
    "combine": lambda pair, a, out: eckart.combine([a, a], output=out),
    "merge": lambda pair, a, out: eckart.merge(pair / "base", [a], out),
    "quantize": lambda pair, a, out: eckart.quantize(pair / "base", out),
    "convert": lambda pair, a, out: convert(a, "peft", output=out),
    "convert to mlx": lambda pair, a, out: convert(a, "mlx", base=pair / "base", output=out),
}


def lora(outputs=64, inputs=64, rank=3, base="org/base"):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    return Adapter({LAYER: AdapterLayer(A / 100, B, 6.0)}, base_model=base)


def metadata(text):
    """What the hub's parser finds in a card."""
    return ModelCard(text).data.to_dict()


@pytest.fixture(name="adapter")
def saved(tmp_path):
    lora().save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_output_has_a_card_of_the_same_bytes_for_the_same_work(operation, llama_pair, adapter, tmp_path):
    OPERATIONS[operation](llama_pair, adapter, tmp_path / "one")
    OPERATIONS[operation](llama_pair, adapter, tmp_path / "two")
    text = (tmp_path / "one/README.md").read_text()
    assert text == (tmp_path / "two/README.md").read_text()
    card = metadata(text)
    of_model = operation in ("merge", "quantize")
    library = "transformers" if of_model else "mlx" if "mlx" in operation else "peft"
    assert card["library_name"] == library
    assert card["tags"][:2] == ["eckart", f"eckart-{operation.split()[0]}"]
    assert card.get("base_model") == (None if of_model or operation == "extract" else "org/base")
    assert "license" not in card
    assert "# license: to be filled in" in text
    assert str(tmp_path) not in text
    assert str(llama_pair) not in text
    assert not re.search(r"(?<![\w`])/\w+/", text)


def test_an_unmerged_model_has_a_card(llama_pair, adapter, tmp_path):
    eckart.merge(llama_pair / "base", [adapter], tmp_path / "merged")
    unmerge(tmp_path / "merged", [adapter], tmp_path / "restored")
    assert "eckart-unmerge" in metadata((tmp_path / "restored/README.md").read_text())["tags"]


def test_the_card_states_ranks_and_errors_with_their_bound(llama_pair, tmp_path):
    result = eckart.extract(llama_pair / "base", llama_pair / "tuned", rank=2, output=tmp_path / "a")
    text = (tmp_path / "a/README.md").read_text()
    assert f"- Rank: 2, in {len(result.layers)} layers" in text
    assert f"- Parameters: {result.adapter.params:,}" in text
    error, least = 100 * result.error, 100 * result.error_lower_bound
    assert f"update of the fine-tune: {error:.3g} %; the least possible at these ranks is {least:.3g} %" in text


def test_a_merge_keeps_the_license_of_the_base(llama_pair, adapter, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in (llama_pair / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    front = "license: other\nlicense_name: some-license\nlicense_link: https://a.b/c\nextra: &x [1]"
    (base / "README.md").write_text(f"---\n{front}\n---\n# The base\n")
    (base / "LICENSE").write_text("Terms")
    eckart.merge(base, [adapter], tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert (metadata(text)["license"], metadata(text)["license_name"]) == ("other", "some-license")
    assert "to be filled in" not in text
    assert (tmp_path / "out/LICENSE").read_text() == "Terms"
    assert "The base" in (base / "README.md").read_text()


def test_a_card_that_its_user_edited_is_not_replaced(adapter, tmp_path):
    eckart.resize(adapter, rank=2, output=tmp_path / "out")
    eckart.resize(adapter, rank=1, output=tmp_path / "out", force=True)
    card = tmp_path / "out/README.md"
    card.write_text(card.read_text().replace("# license: to be filled in", "license: mit #"))
    assert license_of(tmp_path / "out") == {}
    with pytest.raises(OutputError, match=r"README.md was edited since eckart wrote it"):
        eckart.resize(adapter, rank=2, output=tmp_path / "out", force=True)
    assert "license: mit" in card.read_text()


HOSTILE = [
    "a`b``c", "`", "<script>alert(1)</script>", "# Title\n---\nlicense: mit", "[x](http://y)", "a|b\r\n\x1b[31m",
    "```\n$(rm)\n```", "é" * 500, "",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_in_markdown_and_yaml(name, tmp_path):
    token = COMMAND.set(f"eckart resize {name}".replace("\n", "�"))
    try:
        write_card(
            tmp_path, f"LoRA adapter of {code(name)}", [("Base", code(name))], base=name, metadata={"tags": [name]}
        )
    finally:
        COMMAND.reset(token)
    text = (tmp_path / "README.md").read_text()
    assert metadata(text) == {"tags": [name]}
    headings = [line for line in ModelCard(text).text.splitlines() if line.startswith("#")]
    assert len(headings) == 1
    span = code(name)
    fence = len(span) - len(span.lstrip("`"))
    assert "\n" not in span
    assert "`" * fence not in span[fence:-fence]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/name", "org/name"),
        ("org/name@v1", "org/name"),
        ("/home/me/models/base/", "base"),
        ("C:\\Users\\me\\base", "base"),
        ("../base", "base"),
        ("https://user:secret@host/a/model.safetensors?token=x", "model.safetensors"),  # pragma: allowlist secret
        ("/home/me/.cache/huggingface/hub/models--org--name/snapshots/abc", "org/name"),
    ],
)
def test_a_model_is_named_without_what_its_path_says(model, shown):
    assert shown_name(model) == shown


LICENSES = {
    "plain": ("---\nlicense: apache-2.0\n---\n", {"license": "apache-2.0"}),
    "quoted, with Windows' ends of lines": ('---\r\nlicense: "mit"\r\n---\r\n', {"license": "mit"}),
    "only in the text": ("license: mit\n", {}),
    "nested": ("---\nmodel:\n  license: mit\n---\n", {}),
    "not a scalar": ("---\nlicense: [a, b]\n---\n", {}),
    "an anchor": ("---\nlicense: *x\n---\n", {}),
    "endless": ("---\nlicense: " + "x" * 300 + "\n---\n", {}),
    "no end": ("---\nlicense: mit\n", {}),
}


@pytest.mark.parametrize("case", LICENSES)
def test_only_a_plain_license_is_taken_from_a_card(case, tmp_path):
    text, expected = LICENSES[case]
    (tmp_path / "README.md").write_bytes(text.encode())
    assert license_of(tmp_path) == expected


def test_a_card_outside_the_folder_is_not_read(tmp_path):
    (tmp_path / "card").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/README.md").symlink_to(tmp_path / "card")
    assert license_of(tmp_path / "model") == {}
    assert license_of(None) == {}


def test_the_command_in_the_card_has_no_path_and_no_option_of_the_run(adapter, tmp_path):
    from typer.testing import CliRunner

    from eckart.cli.main import app

    arguments = ["resize", adapter, "-o", tmp_path / "out", "--rank", 2, "--workers", 1, "--no-resume", "--json"]
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    assert ended.exit_code == 0, ended.stderr
    assert "\neckart resize adapter --rank 2 -o OUT\n" in Path(tmp_path / "out/README.md").read_text()
