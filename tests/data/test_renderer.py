from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.data.renderer import PromptRefused, Renderer
from rlkit.errors import UserError

from .conftest import make_model

CHAT = [{"role": "system", "content": "hi"}, {"role": "user", "content": "1+1é"}]


def test_a_chat_opens_the_assistants_turn_and_has_one_bos(model_folder: Path) -> None:
    renderer = Renderer(model_folder)
    ids = renderer.encode_prompt(CHAT)
    assert ids[0] == 256 and ids.count(256) == 1 and 257 not in ids
    assert renderer.decode(ids) == "<system>hi</><user>1+1é</><assistant>"
    assert renderer.decode(ids, special=True) == "<bos><system>hi</><user>1+1é</><assistant>"


def test_text_has_one_bos_where_the_model_has_one_and_no_eos(tmp_path: Path, model_folder: Path) -> None:
    ids = Renderer(model_folder).encode_prompt("1+1")
    assert ids[0] == 256 and len(ids) == 4
    assert Renderer(model_folder).encode_prompt("<bos>1+1") == ids
    bare = Renderer(make_model(tmp_path / "bare", writes_bos=False))
    assert bare.encode_prompt("1+1") == ids[1:]
    assert bare.decode(ids[1:]) == "1+1"


def test_arguments_reach_the_chat_template(model_folder: Path) -> None:
    renderer = Renderer(model_folder, chat_template_kwargs={"opening": "<think>"})
    assert renderer.decode(renderer.encode_prompt(CHAT)).endswith("<assistant><think>")


def test_a_turn_ends_with_any_of_the_ends_that_the_model_knows(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert (Renderer(folder).eos_ids, Renderer(folder).pad_id) == (frozenset({257}), 259)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 257]}))
    assert Renderer(folder).eos_ids == frozenset({257, 258})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 258}))
    assert Renderer(folder).eos_ids == frozenset({257, 258})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"eos_token_id": "two"}', 'eos_token_id holds "two", which is no token; valid: the id of a token'),
        ('{"eos_token_id": 2.0}', "eos_token_id holds 2.0, which is no token"),
        ('{"eos_token_id": true}', "eos_token_id holds true, which is no token"),
        ('{"eos_token_id": [258, -1]}', "eos_token_id holds -1, which is no token"),
        ('{"eos_token_id": {"id": 258}}', 'eos_token_id holds {"id": 258}, which is no token'),
        ("[258]", "cannot be read as the generation configuration of a model: it holds [258] and no keys"),
        ('{"eos_token_id": 258', "cannot be read as the generation configuration of a model: Expecting"),
        ("", "cannot be read as the generation configuration of a model: Expecting"),
        (None, "cannot be read as the generation configuration of a model: [Errno 2]"),
    ],
)
def test_ends_that_cannot_be_read_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    file = make_model(tmp_path / "model") / "generation_config.json"
    file.symlink_to(tmp_path / "content")
    if content is not None:
        (tmp_path / "content").write_text(content)
    with pytest.raises(UserError) as refused:
        Renderer(tmp_path / "model")
    assert message in str(refused.value) and str(file) in str(refused.value)


def test_no_other_content_of_the_file_is_an_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    for content in ('{"temperature": 0.6, "top_p": 0.9}', '{"eos_token_id": null, "num_beams": "x"}', '{"eos_token_id": []}'):
        (folder / "generation_config.json").write_text(content)
        assert Renderer(folder).eos_ids == frozenset({257})


def test_what_is_saved_reads_the_same(tmp_path: Path, model_folder: Path) -> None:
    first = Renderer(model_folder)
    first.save(tmp_path / "saved")
    again = Renderer(tmp_path / "saved", offline=True)
    assert again.encode_prompt(CHAT) == first.encode_prompt(CHAT)
    assert (again.eos_ids, again.pad_id) == (first.eos_ids, first.pad_id)


def test_a_model_without_chat_template_takes_text_and_no_chat(tmp_path: Path) -> None:
    renderer = Renderer(make_model(tmp_path / "base", chat_template=None))
    assert len(renderer.encode_prompt("1+1")) == 4
    with pytest.raises(UserError, match=r"has no chat template, and the prompts are messages\nput a chat_template\.jinja into its folder"):
        renderer.encode_prompt(CHAT)


def test_a_template_that_refuses_says_so(model_folder: Path) -> None:
    with pytest.raises(UserError, match="refuses a prompt: no tools here\nprompt: "):
        Renderer(model_folder).encode_prompt([{"role": "tool", "content": "x"}])


def test_a_missing_model_is_told_with_its_neighbours(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"tinny does not exist; in {model_folder.parent} there is tiny"):
        Renderer(model_folder.parent / "tinny")
    with pytest.raises(
        UserError, match=r"as a model of the hub it cannot be loaded: the hub cannot be asked \(offline=true, or no network\)"
    ):
        Renderer("rlkit-tests/no-such-model", offline=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no tokenizer that can be read \(in it: nothing\)"):
        Renderer(tmp_path / "empty")


def test_tokens_that_the_model_does_not_know_are_refused_with_both_numbers(tmp_path: Path) -> None:
    renderer = Renderer(make_model(tmp_path / "model"))
    assert renderer.vocabulary is None
    renderer.check_vocabulary(260)
    assert renderer.encode_prompt(CHAT)
    with pytest.raises(
        UserError, match=r"has a special token .* of the id 259, and its config\.json \(vocab_size\) .* knows 259 tokens, 0 to"
    ):
        renderer.check_vocabulary(259)  # <pad>
    with pytest.raises(UserError, match=r"has tokens up to the id 255, .* knows 200 tokens, 0 to 199; take the tokenizer that belongs to"):
        renderer.check_vocabulary(200)


def test_an_added_token_beyond_the_model_is_refused_in_the_text_that_holds_it(tmp_path: Path) -> None:
    """As Gemma's tokenizer has one for images, which its small models of text do not know."""
    from transformers import AutoTokenizer

    folder = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    renderer = Renderer(folder)
    renderer.check_vocabulary(260)
    assert renderer.encode_prompt("an image")
    with pytest.raises(PromptRefused, match=r"holds the token 260 \('<image>'\), and the model of model\.path .* knows 260"):
        renderer.encode_prompt("an <image>")


def test_the_pieces_of_tokens_are_the_text_when_joined(model_folder: Path) -> None:
    """One token a byte: a character of several stands at its last byte, and bytes of none are shown as what stands for them."""
    renderer = Renderer(model_folder)
    ids = renderer.encode_prompt("1é🙂 ")[1:]
    assert renderer.split_text(ids) == ["1", "", "é", "", "", "", "🙂", " "]
    assert renderer.split_text([*ids[:1], 257]) == ["1", ""]  # the end token is no text
    assert renderer.split_text([]) == []
    for broken in (ids[1:2], [ids[1], ids[0]], [ids[0], *ids[3:5], 257], ids[1:2] * 3):
        pieces = renderer.split_text(broken)
        assert len(pieces) == len(broken) and "".join(pieces) == renderer.decode(broken) and "\ufffd" in "".join(pieces)


def test_the_pieces_of_a_tokenizer_that_joins_words_have_their_spaces(tmp_path: Path) -> None:
    """As in Llama 2 and Gemma: a token alone is decoded without the space before it."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "▁the": 1, "▁sum": 2, "▁is": 3, "ty": 4, "<0xC3>": 5, "<0xA9>": 6}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    strip = tokenizers.decoders.Strip(" ", 1, 0)
    parts = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(), strip]
    model.decoder = tokenizers.decoders.Sequence(parts)
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>").save_pretrained(tmp_path)
    renderer = Renderer(tmp_path)
    ids = [1, 2, 4, 3, 5, 6, 2]
    assert renderer.decode(ids) == "the sumty isé sum"
    assert renderer.split_text(ids) == ["the", " sum", "ty", " is", "", "é", " sum"]
