"""Encoders of each kind with random weights and a byte-level tokenizer: small enough to be made in a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from training.model import InstructionModel

MULTILINGUAL = (
    "I want to buy a blue shirt for the office",
    "我想买一件蓝色的衬衫",
    "أريد شراء قميص أزرق للمكتب",
    "मुझे दफ़्तर के लिए नीली कमीज़ चाहिए",
    "青いシャツを探しています",
    "파란 셔츠를 사고 싶어요",
    "Я хочу купить синюю рубашку",
    "θέλω ένα μπλε πουκάμισο",
    "🧵👕💙 👨‍👩‍👧‍👦 please",
    "e\u0301te\u0301 cafe\u0301 n\u0303",
    "\u202bחולצה כחולה\u202c",
)
"""The same wish in many scripts, with joined emoji and combining marks."""

DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gpt_neox")


def byte_level_tokenizer(folder: Path, texts: Sequence[str] = MULTILINGUAL, *, end_of_text: bool = False) -> Tokenizer:
    """Train a byte-level BPE and save it as `folder/tokenizer.json`: any text becomes tokens and comes back.

    Like GPT-2's it has no padding token and adds no special token, unless `end_of_text` asks for one behind every text.
    """
    # Imported here, so that tests of rooms without torch do not load what they do not need.
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if end_of_text:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def save_encoder(kind: str, folder: Path, *, dtype: str = "float32", end_of_text: bool = False, seed: int = 0) -> Path:
    """Save a tiny encoder of a kind (as transformers names them) in Hugging Face format, and its tokenizer.

    Its weights are larger than a fresh model's: at the usual 0.02 all texts would be nearly alike.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.set_num_threads(1)  # the model is so small that threads only wait for each other
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer(folder, end_of_text=end_of_text)
    size = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if kind in ("llama", "qwen2", "qwen3", "mistral"):
        size["num_key_value_heads"] = 2
    if kind == "albert":
        size["embedding_size"] = 16
    if kind == "deberta-v2":
        size |= {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    if kind == "qwen3":
        size["head_dim"] = 16
    encoder = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **size))
    encoder.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def words_model() -> InstructionModel:
    """A BERT of two layers over the words w0 to w99, with random weights, always the same."""
    import torch  # noqa: PLC0415
    from tokenizers import models, pre_tokenizers  # noqa: PLC0415
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    from training.model import InstructionModel  # noqa: PLC0415

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(100)}, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = InstructionModel(BertModel(config), tokenizer, "mean", max_length=16, labels=4)
    torch.nn.init.normal_(model.head.weight)
    return model
