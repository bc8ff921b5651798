"""Language models and a tokenizer so small that a test trains them: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHARACTERS = "0123456789+=abcd "


def tokenizer(*, pad: str | None = "<pad>", characters: str = CHARACTERS) -> Any:
    """Return a real tokenizer that knows one token per character."""
    words = ["<pad>", "<eos>", "<unk>", *characters]
    model = models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = token_decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", unk_token="<unk>", pad_token=pad
    )


def llama(
    seed: int = 0, *, width: int = 16, layers: int = 2, context: int = 64, **more: Any
) -> Any:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(CHARACTERS) + 3,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | more)).eval()


def gpt2(seed: int = 0, *, width: int = 16, layers: int = 2, context: int = 64, **more: Any) -> Any:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(CHARACTERS) + 3,
        "n_embd": width,
        "n_layer": layers,
        "n_head": 4,
        "n_positions": context,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**settings | more)).eval()


MODELS = {"llama": llama, "gpt2": gpt2}
