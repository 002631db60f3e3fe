"""Drops layers of an encoder: what is left is an ordinary encoder with fewer of them."""

import copy
from collections.abc import Sequence

import numpy as np
import transformers
from torch import nn

from training.errors import ConfigError, EncoderError

# Where families keep their layers: BERT, RoBERTa, MPNet; DistilBERT; GPT-2; Llama, Qwen, ModernBERT.
LAYER_LISTS = ("encoder.layer", "transformer.layer", "h", "layers")


def layer_list(encoder: transformers.PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The encoder's layers, first to last, and the name of their list within the encoder.

    Raises:
        EncoderError: They are nowhere that is known, as where all layers share one set of weights.
    """
    modules = dict(encoder.named_modules())
    for name in LAYER_LISTS:
        layers = modules.get(name)
        if isinstance(layers, nn.ModuleList) and len(layers) == encoder.config.num_hidden_layers:
            return name, layers
    raise EncoderError(
        f"{type(encoder).__name__}: its layers are in none of {', '.join(LAYER_LISTS)}; it cannot be pruned"
    )


def kept_layers(layers: int | Sequence[int], total: int) -> tuple[int, ...]:
    """Which of `total` layers are kept: those listed, or so many, spread evenly with the first and the last.

    Raises:
        ConfigError: The encoder has no such layers, or not so many.
    """
    if isinstance(layers, int):
        if layers > total:
            raise ConfigError(f"distillation.layers is {layers}, the teacher has {total}; keep fewer")
        return tuple(int(place) for place in np.linspace(0, total - 1, layers).round())
    if max(layers) >= total:
        raise ConfigError(
            f"distillation.layers names layer {max(layers)}, the teacher's are 0 to {total - 1}; name some of those"
        )
    return tuple(layers)


def pruned(encoder: transformers.PreTrainedModel, kept: Sequence[int]) -> transformers.PreTrainedModel:
    """A new encoder of the same kind with copies of the layers `kept`, in that order, and of all that is no layer.

    Raises:
        EncoderError: The layers cannot be found, or one does not fit its new place.
    """
    name, layers = layer_list(encoder)
    config = copy.deepcopy(encoder.config)
    kinds = getattr(config, "layer_types", None)  # of a decoder with several kinds of attention: one entry a layer
    if kinds is not None:
        config.layer_types = [kinds[place] for place in kept]
    config.num_hidden_layers = len(kept)
    # Made anew, not cut: a decoder's layers know their own place, which tells them where their cache is.
    student = type(encoder)(config)
    weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith(f"{name}.")}
    for place, old in enumerate(kept):
        weights.update({f"{name}.{place}.{key}": value for key, value in layers[old].state_dict().items()})
    try:
        student.load_state_dict(weights)
    except RuntimeError:
        raise EncoderError(
            f"{type(encoder).__name__}: its layers are not all alike, and those at {list(kept)} do not fit "
            f"the places 0 to {len(kept) - 1}; list others in distillation.layers"
        ) from None
    student.eval()  # type: ignore[no-untyped-call]
    return student
