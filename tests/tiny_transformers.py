"""Transformers as small as they can be, with a tokeniser, as folders that a user would name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ["pay", "my", "bill", "card", "play", "song", "stop", "music", "the", "a", "now", "please"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
INTENTS = ["pay", "block", "play", "stop"]
DOMAINS = ["bank", "music"]


def _save_tokeniser(folder: Path, ends: bool) -> int:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, "##s", "##ed"])}
    tokeniser = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, Any] = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if ends:
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokeniser.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(tokenizer_object=tokeniser, **special).save_pretrained(folder)
    return len(vocabulary)


def tiny_encoder(folder: Path, **options: Any) -> str:
    """A BERT of two layers; returns the folder."""
    size = _save_tokeniser(folder, ends=True)
    settings: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    BertModel(BertConfig(vocab_size=size, **(settings | options))).save_pretrained(folder)
    return str(folder)


def tiny_language_model(folder: Path) -> str:
    """A Llama of one layer, whose tokeniser has no padding token; returns the folder."""
    size = _save_tokeniser(folder, ends=False)
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, bos_token_id=2, eos_token_id=3, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


_REQUESTS = {
    "pay": ["pay my bill", "pay the bill now", "please pay", "pay a bill please now"],
    "block": ["my card stop", "stop the card", "card card please", "the card now"],
    "play": ["play a song", "play music now please", "song song", "please play music"],
    "stop": ["stop the music", "stop now", "please stop my song now", "stop song"],
}


def requests(copies: int = 1) -> DatasetDict:
    """Four intents in two domains, four texts each: ``text``, ``intent`` and ``domain``."""
    rows = [(text, intent) for intent in INTENTS for text in _REQUESTS[intent]] * copies
    features = Features(
        {"text": Value("string"), "intent": ClassLabel(names=INTENTS), "domain": ClassLabel(names=DOMAINS)}
    )
    split = Dataset.from_dict(
        {
            "text": [text for text, _ in rows],
            "intent": [INTENTS.index(intent) for _, intent in rows],
            "domain": [INTENTS.index(intent) // 2 for _, intent in rows],
        },
        features=features,
    )
    return DatasetDict(train=split, test=split)


def tagged_words() -> DatasetDict:
    """Sentences of two domains whose words have tags: ``tokens``, ``tags`` and ``domain``."""
    features = Features(
        {
            "tokens": Sequence(Value("string")),
            "tags": Sequence(ClassLabel(names=["O", "THING", "ACT"])),
            "domain": Value("string"),
        }
    )
    split = Dataset.from_dict(
        {
            "tokens": [["plays", "my", "songs"], ["pay", "bills"], ["stop", "the", "music"], ["my", "card"]],
            "tags": [[2, 0, 1], [2, 1], [2, 0, 1], [0, 1]],
            "domain": ["music", "bank", "music", "bank"],
        },
        features=features,
    )
    return DatasetDict(train=split, test=split)
