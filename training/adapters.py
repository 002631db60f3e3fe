"""Makes an encoder trainable: all its weights, low-rank adapters that merge into them at the end, or bottlenecks."""

import math
import warnings
from typing import Any

import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from training.bottleneck import ADAPTER, add_bottlenecks, bottleneck_size, train_bottlenecks
from training.config import EncoderTuningConfig
from training.errors import ConfigError

# BERT's pooler feeds nothing here: `InstructionModel` pools by itself, so an adapter of it would never learn.
POOLER = r"(.*\.)?pooler(\..*)?"
ADAPTIVE_START = 1.5  # AdaLoRA starts with so many times the rank that it ends with


def make_trainable(encoder: transformers.PreTrainedModel, config: EncoderTuningConfig, steps: int) -> nn.Module:
    """The encoder with the weights that the method trains; `steps` is the number of steps of the optimiser.

    LoRA is Hu et al. 2021, AdaLoRA Zhang et al. 2023, bottleneck Houlsby et al. 2019. The adapters' start is drawn from
    torch's generator.

    Raises:
        ConfigError: No module of the encoder has one of the names in `target_modules`, the encoder has no known place
            for bottlenecks, or it has bottlenecks, which do not go with low-rank adapters.
    """
    if config.method == "full":
        encoder.requires_grad_(True)
        return encoder
    if config.method == "bottleneck":
        add_bottlenecks(encoder, config.bottleneck_size)
        train_bottlenecks(encoder)
        return encoder
    if bottleneck_size(encoder) is not None:
        raise ConfigError(
            f"encoder_tuning.method: {config.method} cannot be merged into an encoder that has bottleneck adapters; "
            "use bottleneck or full, or start from another encoder"
        )
    targets = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    common: dict[str, Any] = {
        "task_type": TaskType.FEATURE_EXTRACTION,
        "target_modules": targets,
        "exclude_modules": POOLER,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
    }
    settings = LoraConfig(r=config.rank, **common)
    if config.method == "adalora":
        settings = AdaLoraConfig(
            init_r=math.ceil(ADAPTIVE_START * config.rank + 0.1),
            target_r=config.rank,
            total_step=steps,
            tinit=steps // 10,
            tfinal=steps // 4,
            deltaT=max(1, steps // 50),
            **common,
        )
    try:
        with warnings.catch_warnings():
            # peft asks transformers under a name that is to go; nobody who tunes can do anything about it.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            adapted: nn.Module = get_peft_model(encoder, settings)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"encoder_tuning.target_modules: {reason}; name linear layers of the encoder") from None
    return adapted


def merged(encoder: nn.Module) -> nn.Module:
    """The encoder in its own format again, with what low-rank adapters learned added to its weights.

    Bottleneck adapters stay: they are no linear maps, so no weights could do their work.
    """
    if isinstance(encoder, PeftModel):
        encoder = encoder.merge_and_unload()
    return encoder.requires_grad_(False).eval()


def orthogonality_loss(encoder: nn.Module) -> Tensor | None:
    """AdaLoRA's pull of its factors towards orthogonality, a scalar; None for another method.

    The mean over all factors of `‖PᵀP - I‖` (Frobenius; Zhang et al. 2023, section 3.1), times the adapter's weight of
    it. peft adds it to a loss that the encoder returns, but the loss here is computed outside of the encoder.
    """
    if not is_adaptive(encoder):
        return None
    losses = []
    for name, factor in encoder.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
            losses.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    weight: float = encoder.peft_config["default"].orth_reg_weight  # type: ignore[index, union-attr]
    return weight * torch.stack(losses).mean()


def is_adaptive(encoder: nn.Module) -> bool:
    """Whether the encoder has AdaLoRA adapters, whose ranks are allotted anew while they learn."""
    return isinstance(encoder, PeftModel) and isinstance(encoder.peft_config["default"], AdaLoraConfig)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters of `model` are trained, and how many it has without its adapters."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    own = (value for name, value in model.named_parameters() if "lora_" not in name and f".{ADAPTER}." not in name)
    whole = sum(parameter.numel() for parameter in own)
    return trained, whole
