import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rl4rec.data.vocabulary import ITEM_OFFSET, SPECIAL_TOKENS, build_tokenizer, item_token, raw_item_id


@pytest.mark.parametrize(
    ("raw", "token"),
    [
        ("B0009P4PZC", "B0009P4PZC"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("[PAD]", "%5BPAD]"),
        ("x[SEP]y", "x%5BSEP]y"),
        ("tab\tnew\nline", "tab%09new%0Aline"),
        ("\u00a0", "%C2%A0"),
        ("crème", "crème"),
    ],
)
def test_item_token_and_back(raw, token):
    assert item_token(raw) == token
    assert raw_item_id(token) == raw


def test_special_tokens_come_first_then_items_in_their_order():
    tokenizer = build_tokenizer(["zeta", "[EOS]", "a b"])
    assert ITEM_OFFSET == 4
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert tokenizer("zeta %5BEOS] [EOS] a%20b unheard-of").input_ids == [4, 5, 3, 6, 1]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert (tokenizer.eos_token_id, len(tokenizer)) == (3, 7)


def test_pads_on_the_left_and_decodes_to_the_same_text():
    tokenizer = build_tokenizer(["x", "y"])
    assert tokenizer(["x", "x y"], padding=True).input_ids == [[0, 4], [4, 5]]
    assert tokenizer.decode([4, 5, 4]) == "x y x"


def test_survives_saving(tmp_path):
    build_tokenizer(["x", "[y]", "z z"]).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("z%20z %5By] x").input_ids == [6, 5, 4]
    assert loaded.padding_side == "left"
    assert (loaded.pad_token, loaded.eos_token) == ("[PAD]", "[EOS]")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, unique=True))
def test_any_raw_id_is_one_token(raw_ids):
    tokenizer = build_tokenizer(raw_ids)
    text = " ".join(item_token(raw) for raw in raw_ids)
    assert tokenizer(text).input_ids == [4 + number for number in range(len(raw_ids))]
    assert [raw_item_id(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)] == raw_ids


@pytest.mark.parametrize("raw_ids", [["a", "a"], ["a", ""]])
def test_ids_must_be_distinct_and_not_empty(raw_ids):
    with pytest.raises(ValueError, match="distinct"):
        build_tokenizer(raw_ids)
