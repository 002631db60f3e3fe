"""Bottleneck adapters (Houlsby et al. 2019): small layers inside an encoder whose own weights stay as they are.

An adapter adds `up(gelu(down(x)))` to what a sub-layer puts out, so it cannot be merged into the weights. A folder
keeps what was learned beside the encoder's untouched files: `bottleneck.safetensors` (the adapters and the layer norms,
which learn with them, under their names in the encoder) and `bottleneck.json`.
"""

import re
from pathlib import Path
from typing import Any, cast

import transformers
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from training.encoder_source import BOTTLENECK_SETTINGS, BOTTLENECK_WEIGHTS
from training.errors import ConfigError, EncoderError

ADAPTER = "bottleneck"  # the adapter's name in the projection that it follows
START_DEVIATION = 1e-2  # of the start's weights, cut at two deviations: section 3.6 of the paper

# The last projection of a layer's two sub-layers, behind the layer's number.
ATTENTION_OUTPUTS = (
    "attention.output.dense",  # BERT, RoBERTa, ELECTRA
    "attention.out_lin",  # DistilBERT
    "attn.Wo",  # ModernBERT
    "attn.c_proj",  # GPT-2
    "attention.dense",  # GPT-NeoX
    "self_attn.o_proj",  # Llama, Mistral, Qwen
    "self_attn.out_proj",  # OPT
)
FEED_FORWARD_OUTPUTS = (
    "output.dense",
    "ffn.lin2",
    "mlp.Wo",
    "mlp.c_proj",
    "mlp.dense_4h_to_h",
    "mlp.down_proj",
    "fc2",
)


class BottleneckSettings(BaseModel):
    """The content of `bottleneck.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = Field(default=1, ge=1, le=1)
    size: int = Field(ge=1)


class Bottleneck(nn.Module):
    """One adapter: [..., H] through `size` dimensions back to [..., H], added to its input."""

    def __init__(self, hidden_size: int, size: int) -> None:
        """Start near the identity; the start is drawn from torch's generator."""
        super().__init__()
        self.down = nn.Linear(hidden_size, size)
        self.up = nn.Linear(size, hidden_size)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=START_DEVIATION, a=-2 * START_DEVIATION, b=2 * START_DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the sub-layer put out, and what the adapter adds to it."""
        return hidden + cast(Tensor, self.up(nn.functional.gelu(self.down(hidden))))


def add_bottlenecks(encoder: transformers.PreTrainedModel, size: int) -> None:
    """Put two adapters into each layer: behind the attention's output and behind the feed-forward's.

    They stand before the layer's residual sum and norm (of a decoder: before the sum). Existing ones of `size` stay.

    Raises:
        ConfigError: The encoder has adapters of another size, or is built in a way that is not known here.
    """
    present = bottleneck_size(encoder)
    if present is None:
        for projection in _places(encoder):
            adapter = Bottleneck(int(encoder.config.get_text_config().hidden_size), size)
            projection.add_module(ADAPTER, adapter.to(encoder.device))
            projection.register_forward_hook(_adapted)
    elif present != size:
        raise ConfigError(
            f"encoder_tuning.bottleneck_size is {size}, but the encoder's adapters have {present}; set {present}"
        )


def bottleneck_size(encoder: nn.Module) -> int | None:
    """The size of the encoder's bottleneck adapters, None if it has none."""
    for module in encoder.modules():
        if isinstance(module, Bottleneck):
            return int(module.down.out_features)
    return None


def train_bottlenecks(encoder: nn.Module) -> None:
    """Let the adapters and the layer norms learn, and nothing else of the encoder."""
    learning = _learned(encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name in learning)


def save_encoder(encoder: nn.Module, folder: Path) -> None:
    """Write an encoder without low-rank adapters into `folder`: Hugging Face's files, and its bottlenecks if any."""
    state = {name: tensor for name, tensor in encoder.state_dict().items() if f".{ADAPTER}." not in name}
    cast(Any, encoder).save_pretrained(folder, state_dict=state)
    save_bottlenecks(encoder, folder)


def save_bottlenecks(encoder: nn.Module, folder: Path) -> None:
    """Write the encoder's adapters and layer norms beside its other files; nothing if it has no adapters."""
    size = bottleneck_size(encoder)
    if size is not None:
        learned = _learned(encoder)
        tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items() if name in learned}
        (folder / BOTTLENECK_WEIGHTS).write_bytes(save(tensors))
        settings = BottleneckSettings(size=size).model_dump_json(indent=2)
        (folder / BOTTLENECK_SETTINGS).write_text(settings + "\n", encoding="utf-8")


def load_bottlenecks(encoder: transformers.PreTrainedModel, folder: Path) -> None:
    """Put the adapters and layer norms that `folder` keeps, if any, into its encoder.

    Raises:
        EncoderError: One of the two files is missing or damaged, or does not fit the encoder.
    """
    weights, settings = folder / BOTTLENECK_WEIGHTS, folder / BOTTLENECK_SETTINGS
    if not (weights.exists() or settings.exists()):
        return
    try:
        size = BottleneckSettings.model_validate_json(settings.read_text(encoding="utf-8")).size
        tensors = load_file(weights)
        add_bottlenecks(encoder, size)
    except (OSError, ValueError, ValidationError, SafetensorError, ConfigError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"encoder {folder}: its bottleneck adapters cannot be loaded: {reason}") from None
    expected = {name: tensor.shape for name, tensor in encoder.state_dict().items() if name in _learned(encoder)}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise EncoderError(f"encoder {folder}: {BOTTLENECK_WEIGHTS} does not fit the encoder; train again")
    encoder.load_state_dict(tensors, strict=False)


def _adapted(projection: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The hook of a projection that has an adapter: its weights keep their names, unlike in a wrapping module."""
    return cast(Tensor, projection.get_submodule(ADAPTER)(output))


def _learned(encoder: nn.Module) -> set[str]:
    names: set[str] = set()
    for module_name, module in encoder.named_modules():
        if isinstance(module, Bottleneck) or type(module).__name__.endswith("Norm"):
            names.update(f"{module_name}.{name}" for name, _ in module.named_parameters())
    return names


def _places(encoder: transformers.PreTrainedModel) -> list[nn.Module]:
    settings = encoder.config.get_text_config()
    found: list[nn.Module] = []
    for kinds in (ATTENTION_OUTPUTS, FEED_FORWARD_OUTPUTS):
        pattern = re.compile(rf"(.*\.)?\d+\.({'|'.join(map(re.escape, kinds))})")
        places = [module for name, module in encoder.named_modules() if pattern.fullmatch(name)]
        if not places or len(places) != getattr(settings, "num_hidden_layers", None):
            raise ConfigError(
                f"encoder_tuning.method: bottleneck adapters have no known place in an encoder of type "
                f"{encoder.config.model_type!r}; use lora, or one like BERT, RoBERTa, DistilBERT, GPT-2 or Llama"
            )
        found += places
    return found
