"""What is traced to ONNX: any encoder with its mask, positions and pooling made explicit."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from export.errors import ExportError

if TYPE_CHECKING:
    from training.model import InstructionModel

__all__ = ["EncoderGraph", "ready_to_trace"]

_MASKED = -1e4  # far below any attention score, and still finite in FP16
_ATTENTION = "instructrec_export"


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in five nodes. The scale is applied before the first product, as TensorRT needs."""
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attention)


def _product(module: Conv1D, states: torch.Tensor) -> torch.Tensor:
    """GPT-2's kind of linear layer, without its detour over two dimensions.

    With it the graph would have a Gemm of [batch * length, C] between two Reshapes, where every other encoder has a
    MatMul of [batch, length, C], which is what INT8 quantises.
    """
    return torch.matmul(states, module.weight) + module.bias


class EncoderGraph(nn.Module):
    """What is traced: encoder, pooling and normalisation, with everything explicit that transformers would derive.

    Padding is on the right. A row of padding alone gives a vector of zeros.
    """

    def __init__(self, model: InstructionModel) -> None:
        """Wraps a model; its weights are shared, not copied.

        Raises:
            ExportError: The encoder's attention sees only some of the tokens that the model's limit allows.
        """
        super().__init__()
        self.encoder = model.encoder
        self.pooling = model.pooling
        self.causal = model.causal
        self.accepted = set(inspect.signature(self.encoder.forward).parameters)
        modules = {name.rpartition(".")[2] for name, _ in self.encoder.named_modules()}
        if "token_type_embeddings" not in modules:
            # GPT-2 accepts them, but would add the vector of word 0 to every token.
            self.accepted.discard("token_type_ids")
        self.first_position = model.first_position
        window = getattr(self.encoder.config.get_text_config(), "sliding_window", None)
        if window is not None and window < model.max_length:
            raise ExportError(
                f"The encoder's attention reaches {window} tokens back, and encoder.max_length is {model.max_length}: "
                f"a window cannot be exported. Set encoder.max_length to {window} or less and train again."
            )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the vector [B, H] and the hidden states [B, L, H], the one of the embedding tables first."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        mask = attention_mask
        if self.encoder.config._attn_implementation == _ATTENTION:  # other attention makes its own of it, as in tuning
            mask = self._added_to_scores(attention_mask, positions)
        arguments = {
            "position_ids": positions + self.first_position,
            "token_type_ids": torch.zeros(1, 1, dtype=torch.int64, device=input_ids.device),
            "use_cache": False,
        }
        states = self.encoder(
            input_ids=input_ids,
            attention_mask=mask,
            output_hidden_states=True,
            **{name: value for name, value in arguments.items() if name in self.accepted},
        )
        vector = self._pool(states.last_hidden_state.to(torch.float32), attention_mask.to(torch.float32), positions)
        # Not `functional.normalize`: its expansion keeps ONNX Runtime from some of its fusions.
        length = torch.sqrt((vector * vector).sum(dim=1, keepdim=True).clamp(min=1e-24))
        return (vector / length, *states.hidden_states)

    def _added_to_scores(self, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        blocked = 1.0 - attention_mask[:, None, None, :].to(torch.float32)
        if self.causal:
            future = (positions[:, None, None, :] > positions[:, None, :, None]).to(torch.float32)
            blocked = torch.maximum(blocked, future)
        return (blocked * _MASKED).to(self.encoder.dtype)

    def _pool(self, states: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return states[:, 0] * mask[:, :1]
        count = mask.sum(dim=1, keepdim=True)
        if self.pooling == "last":
            last = (positions == count - 1).to(torch.float32)
            return (states * last[:, :, None]).sum(dim=1)
        return (states * mask[:, :, None]).sum(dim=1) / count.clamp(min=1.0)


@contextmanager
def ready_to_trace(encoder: Any) -> Iterator[None]:  # a transformers model, whose class is the config's
    """Gives the encoder the attention above, if it takes any but its own, and the products, and puts all back."""
    attention, training = encoder.config._attn_implementation, encoder.training
    products: list[Any] = [module for module in encoder.modules() if isinstance(module, Conv1D)]
    tracer_log = logging.getLogger("torch.onnx")
    level = tracer_log.level
    try:
        encoder.set_attn_implementation(_ATTENTION)
        for module in products:
            module.forward = _product.__get__(module)  # hides the class's own until it is deleted
        tracer_log.setLevel(logging.ERROR)  # it warns of torchvision, which has no part in this
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        tracer_log.setLevel(level)
        for module in products:
            del module.forward
        encoder.set_attn_implementation(attention)
        encoder.train(training)
