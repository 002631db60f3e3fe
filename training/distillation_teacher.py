"""Opens the run that a student learns from, and checks that the config and the dataset are its own."""

from pathlib import Path
from typing import Any

from training.config import DomainConfig
from training.distillation_config import DistillationConfig
from training.encoder_source import EncoderSource, file_sha256
from training.errors import ConfigError
from training.run import Run
from training.run_encoder import open_intact_run


def open_teacher(config: DomainConfig, encoder: EncoderSource, runs: Path) -> Run | None:
    """The run that the config names as the teacher, None without a distillation.

    `encoder` is the config's; below `runs` the teacher is found by its id.

    Raises:
        RunError: It is no run, or its weights were changed.
        ConfigError: The config's tokenizer, pooling or length is not the teacher's.
    """
    settings = config.distillation
    if settings is None:
        return None
    teacher = open_intact_run(settings.teacher, runs, "distillation.teacher")
    record = teacher.manifest.encoder
    for name, own in (("pooling", record.pooling), ("max_length", record.max_length)):
        if own != getattr(config.encoder, name):
            raise ConfigError(f"encoder.{name} is {getattr(config.encoder, name)}, the teacher's is {own}; set that")
    if file_sha256(encoder.folder / "tokenizer.json") != file_sha256(teacher.path / "encoder/tokenizer.json"):
        raise ConfigError(
            f"distillation.teacher: {teacher.run_id} has another tokenizer than encoder.name {config.encoder.name}; "
            f"set encoder.name to what the teacher was made of ({record.name})"
        )
    return teacher


def distillation_inputs(settings: DistillationConfig, teacher: Run) -> dict[str, Any]:
    """What a student's bytes depend on: the settings, and the teacher's weights wherever the run lies."""
    return {
        **settings.model_dump(mode="json", exclude={"teacher"}),
        "teacher": {"encoder": teacher.encoder.fingerprint, "head": file_sha256(teacher.path / "head.safetensors")},
    }


def check_labels(teacher: Run, labels: tuple[str, ...]) -> None:
    """Make sure that the teacher's labels are the dataset's.

    Raises:
        ConfigError: They are not; the message names one that only one of the two has.
    """
    if teacher.labels == labels:
        return
    only_teacher, only_dataset = set(teacher.labels) - set(labels), set(labels) - set(teacher.labels)
    differing = sorted(only_teacher) or sorted(only_dataset)
    raise ConfigError(
        f"distillation.teacher: {teacher.run_id} knows {len(teacher.labels)} labels, the dataset has {len(labels)}; "
        f"only {'the teacher' if only_teacher else 'the dataset'} has {differing[0]!r}; name a run of this dataset"
    )
