"""The instruction model: encoder, pooling and head."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.bottleneck import load_bottlenecks
from training.config import Pooling
from training.errors import EncoderError
from training.tokenizer import load_tokenizer

NORM_FLOOR = 1e-12  # keeps an all-zero vector from dividing by zero; far below any real norm


class InstructionModel(nn.Module):
    """Maps texts to a normalised vector `h` and to one logit `u` a label. Always in eval mode, float32."""

    def __init__(
        self,
        encoder: transformers.PreTrainedModel,
        tokenizer: Tokenizer,
        pooling: Pooling,
        max_length: int,
        labels: int,
    ) -> None:
        """Join an encoder with a fresh head of zeros for `labels` labels."""
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.max_length = max_length
        self.hidden_size = int(encoder.config.get_text_config().hidden_size)
        self.pad_token_id = pad_token_id(encoder)
        self.causal = is_causal(encoder)
        self.first_position = first_position(encoder)
        # A decoder would keep keys and values for words to come; none will.
        takes_cache = "use_cache" in inspect.signature(encoder.forward).parameters
        self._arguments = {"use_cache": False} if takes_cache else {}
        self.head = nn.Linear(self.hidden_size, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    @classmethod
    def from_folder(cls, folder: Path, pooling: Pooling, max_length: int, labels: int) -> "InstructionModel":
        """Load encoder, its bottleneck adapters if any, and tokenizer from a Hugging Face folder; the head is fresh.

        Raises:
            EncoderError: The folder is incomplete, needs code of its own, cannot take `max_length` tokens, or its
                first token cannot be what `pooling` wants of it.
        """
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # It would list the output layer of a language model, which has no part here.
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            encoder, loaded = _load_encoder(folder)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EncoderError(f"encoder {folder}: cannot be loaded: {reason}") from None
        missing = sorted(name for name in loaded["missing_keys"] if "pooler." not in name)  # BERT's pooler is not used
        if missing:  # they would be random numbers
            raise EncoderError(
                f"encoder {folder}: the weights lack {missing[0]} ({len(missing)} in all); save them with config.json"
            )
        load_bottlenecks(encoder, folder)
        limit = getattr(encoder.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and max_length > (limit := limit - first_position(encoder)):
            raise EncoderError(f"encoder.max_length is {max_length}, the encoder takes {limit}; set {limit} or less")
        if pooling == "cls" and is_causal(encoder):
            raise EncoderError(
                f"encoder {folder}: its first token sees no other, so encoder.pooling cls gives all texts nearly one "
                "vector; set last"
            )
        tokenizer = load_tokenizer(folder, max_length)
        words = encoder.get_input_embeddings().weight.shape[0]
        if tokenizer.get_vocab_size() > words:
            raise EncoderError(
                f"encoder {folder}: the tokenizer knows {tokenizer.get_vocab_size()} tokens, the encoder {words}; "
                "save both from one model"
            )
        return cls(encoder, tokenizer, pooling, max_length, labels)

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Token vectors [B, L, H] and mask [B, L] to one vector a text [B, H], not yet normalised.

        A text without a single token gets zeros, whatever the pooling.
        """
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "cls":
            return hidden[:, 0] * mask[:, 0]
        if self.pooling == "last":
            positions = torch.arange(attention_mask.shape[1], device=hidden.device)
            last = (positions * attention_mask).argmax(dim=1)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), last] * mask[:, 0]
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask, int64 [B, L], to `h` [B, H] (length 1) and `u` [B, K] (logits), float32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **self._arguments).last_hidden_state
        pooled = self.pool(hidden.float(), attention_mask)
        h = pooled / torch.sqrt((pooled * pooled).sum(dim=-1, keepdim=True) + NORM_FLOOR**2)
        return h, self.head(h)

    @torch.inference_mode()
    def embed(
        self, texts: Sequence[str], batch_size: int = 16, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        """The vector `h` of each text, float32 [n, H], in the order of `texts`.

        Every batch has `batch_size` texts of one length, the last of a length some of them twice: products of other
        shapes round differently, and a vector must not depend, to the last bit, on what else is embedded, or is known
        already. `progress` is called with the number of texts done since the last call.
        """
        vectors = np.empty((len(texts), self.hidden_size), dtype=np.float32)
        encodings = self.tokenizer.encode_batch(list(texts)) if texts else []
        of_length: dict[int, list[int]] = {}
        for row, encoding in enumerate(encodings):
            of_length.setdefault(len(encoding.ids), []).append(row)
        for _, rows in sorted(of_length.items()):
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                filled = part + part[:1] * (batch_size - len(part))
                h, _ = self(*self.pad([encodings[row].ids for row in filled]))
                vectors[part] = h.numpy()[: len(part)]
                if progress is not None:
                    progress(len(part))
        return vectors

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids of several texts as `input_ids` and `attention_mask`, int64 [B, L], padded on the right."""
        length = max(1, *(len(ids) for ids in token_ids))
        input_ids = torch.full((len(token_ids), length), self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(token_ids), length), dtype=torch.int64)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask


def pad_token_id(encoder: transformers.PreTrainedModel) -> int:
    """The id that fills rows up: the encoder's own, else 0. It is masked, so any id that exists will do."""
    found = getattr(encoder.config.get_text_config(), "pad_token_id", None)
    known = int(encoder.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    return int(found) if found is not None and 0 <= found < known else 0


def is_causal(encoder: transformers.PreTrainedModel) -> bool:
    """Whether a token sees only those before it, as in GPT-class models."""
    if not getattr(encoder.config.get_text_config(), "is_causal", True):  # a decoder made into a two-way encoder
        return False
    return any(getattr(module, "is_causal", False) for module in encoder.modules())


def first_position(encoder: transformers.PreTrainedModel) -> int:
    """The position of the first token: RoBERTa counts from behind its padding index, others from 0."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding_index = getattr(table, "padding_idx", None)
    return 0 if padding_index is None else int(padding_index) + 1


def _load_encoder(folder: Path) -> Any:
    """The encoder and how its loading went: with fused attention, or with its own where it has no other.

    What its config.json asks for does not count: that may need a GPU or a package.
    """
    found = {"local_files_only": True, "trust_remote_code": False}
    # Only of a config that is handed over does the argument prevail.
    config = transformers.AutoConfig.from_pretrained(folder, **found)
    load = functools.partial(
        transformers.AutoModel.from_pretrained,
        folder,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **found,
    )
    try:
        return load(attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return load(attn_implementation="eager")
