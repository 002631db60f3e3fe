"""Loads an encoder's tokenizer with this project's truncation and no padding of its own."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from training.errors import EncoderError

SETTINGS = "tokenizer_config.json"


def load_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The tokenizer of `folder/tokenizer.json`, cutting texts at `max_length` tokens.

    Padding and truncation that were saved with the file are dropped: all-MiniLM's pads every text to 128 tokens. An
    end-of-text token that `tokenizer_config.json` asks for is added where the file itself does not: an encoder with
    last-token pooling that learned to put the text's meaning there needs it. Truncation leaves room for it.

    Raises:
        EncoderError: A file is missing or damaged, or the end-of-text token is unknown.
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
    tokenizer.no_truncation()
    _add_end_of_text(tokenizer, folder / SETTINGS)
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _add_end_of_text(tokenizer: Tokenizer, path: Path) -> None:
    settings = _settings(path)
    if not settings.get("add_eos_token"):
        return
    token = settings.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        raise EncoderError(f"{path}: eos_token {content!r} is not in tokenizer.json; save both from one tokenizer")
    if tokenizer.encode("a").ids[-1:] == [number]:
        return
    ending = processors.TemplateProcessing(single=["$A", content], special_tokens=[(content, number)])
    before = tokenizer.post_processor
    tokenizer.post_processor = ending if before is None else processors.Sequence([before, ending])


def _settings(path: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path}: cannot be read ({error}); save the tokenizer again") from None
    return settings if isinstance(settings, dict) else {}
