"""The item vocabulary as a Hugging Face tokenizer: one item, one token.

Special tokens are [PAD]=0 [UNK]=1 [BOS]=2 [EOS]=3; item i has id `ITEM_OFFSET + i`.
Text is item tokens joined by single spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
ITEM_OFFSET = len(SPECIAL_TOKENS)

# '[' too: special tokens are recognised inside of words.
_UNSAFE = re.compile(r"[\s%\[\x00-\x1f\x7f-\x9f]")


def item_token(raw_id: str) -> str:
    """The token of an item: its raw id with white space, control characters, '%' and '[' percent-encoded (UTF-8)."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), raw_id)


def raw_item_id(token: str) -> str:
    """The raw id behind an item token, the inverse of `item_token`."""
    return unquote(token)


def build_tokenizer(item_ids: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokenizer whose vocabulary is the special tokens, then the items in the given order.

    Args:
        item_ids: raw ids, distinct, not empty.

    Raises:
        ValueError: two raw ids are the same, or one is empty.
    """
    tokens = [*SPECIAL_TOKENS, *map(item_token, item_ids)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens) or "" in vocabulary:
        raise ValueError("item ids must be distinct and not empty")
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" "), behavior="removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
