"""Loads an encoder's tokenizer with this project's truncation and no padding of its own."""

from pathlib import Path

from tokenizers import Tokenizer

from training.errors import EncoderError


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The tokenizer of `folder/tokenizer.json`, cutting texts at `max_length` tokens.

    Padding and truncation that were saved with the file are dropped: all-MiniLM's pads every text to 128 tokens.

    Raises:
        EncoderError: The file is missing or damaged.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(
            f"{path}: cannot be read ({error.strerror}); save the tokenizer with save_pretrained()"
        ) from None
    except Exception as error:  # noqa: BLE001 - the Rust parser raises plain Exception
        raise EncoderError(f"{path}: not a tokenizer ({error}); save the tokenizer again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer
