"""From the readable `model_repository/*/config.pbtxt` to the configs of one release: names, dims, versions, warm-up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tritonclient.grpc import model_config_pb2

from export.settings import LENGTH_MULTIPLES, Mode, ServingSettings
from export.tensorrt.profiles import INPUTS, captured_batches, make_profiles
from serving.live_repository import CONFIG_NAME, format_config, parse_config

MODEL_REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
STEPS = ("tokenizer", "encoder", "head", "topk")
GPU_VARIANT = "configs/gpu.pbtxt"  # read instead of config.pbtxt under --model-config-name=gpu
FUSED = "fused"
"""The step that does all of it."""
WARMUP_DIMS = {"instruction": [1], "history": [1], "top_k": [1]}
WARMUP_FILES = {"instruction": "text", "history": "history", "top_k": "top_k"}
WARMUP_FOLDER = "warmup"  # where Triton looks for `input_data_file`, beside config.pbtxt


def committed_config(name: str, variant: str = CONFIG_NAME) -> model_config_pb2.ModelConfig:
    """The committed config of a step or of the ensemble, or a variant of it."""
    return parse_config((MODEL_REPOSITORY / name / variant).read_text(encoding="utf-8"))


def steps_of(mode: Mode) -> tuple[str, ...]:
    """The models of a domain, beside its ensemble."""
    return STEPS if mode == "ensemble" else (FUSED,)


def step_name(domain: str, step: str) -> str:
    """What Triton calls a domain's step."""
    return f"{domain}_{step}"


class ConfigWriter:
    """Specialises the committed configs for one release."""

    def __init__(
        self, domain: str, settings: ServingSettings, buckets: tuple[int, ...], hidden_size: int, labels: int
    ) -> None:
        """Take what the configs depend on.

        Args:
            domain: the ensemble's name.
            settings: batch size and instances.
            buckets: lengths in tokens.
            hidden_size: width H of the instruction vector.
            labels: number K of labels.
        """
        self.domain = domain
        self.settings = settings
        self.buckets = buckets
        self._dims = {"instruction_vector": [hidden_size], "logits": [labels]}

    def step(self, step: str) -> str:
        """A step's config.pbtxt; the same text for the same settings, so that an unchanged step is recognised."""
        config = self._sized(step)
        if step == "tokenizer":
            config.parameters["length_buckets"].string_value = ",".join(map(str, self.buckets))
        if step in {"tokenizer", FUSED}:
            config.parameters["max_queue_size"].string_value = str(self.settings.max_queue_size)
        if step in {"encoder", FUSED}:
            config.dynamic_batching.max_queue_delay_microseconds = self.settings.max_queue_delay_microseconds
            config.instance_group[0].count = self.settings.encoder_instances
            self._set_engine(step, config)
            self._add_warmup(config)
        return format_config(config)

    def gpu_encoder(self) -> str:
        """The encoder's config variant for an engine: all its profiles, and a CUDA graph for every common shape."""
        config = self._sized("encoder", GPU_VARIANT)
        group, batch = config.instance_group[0], self.settings.max_batch_size
        group.count = self.settings.encoder_instances
        config.dynamic_batching.max_queue_delay_microseconds = self.settings.max_queue_delay_microseconds
        config.parameters["intra_op_thread_count"].string_value = str(self.settings.encoder_threads)
        group.profile[:] = [str(number) for number in range(len(make_profiles(self.buckets, batch)))]
        for bucket in self.buckets:
            for rows in captured_batches(batch):
                spec = config.optimization.cuda.graph_spec.add()
                spec.batch_size = rows
                for name in INPUTS:
                    spec.input[name].dim[:] = [bucket]
        self._add_warmup(config)
        return format_config(config)

    def _sized(self, step: str, variant: str = CONFIG_NAME) -> model_config_pb2.ModelConfig:
        config = committed_config(step, variant)
        config.name = step_name(self.domain, step)
        config.max_batch_size = self.settings.max_batch_size
        for tensor in (*config.input, *config.output):
            if tensor.name in self._dims:
                tensor.dims[:] = self._dims[tensor.name]
        return config

    def _set_engine(self, step: str, config: model_config_pb2.ModelConfig) -> None:
        engine, threads, parameters = self.settings.engine, str(self.settings.encoder_threads), config.parameters
        if step == FUSED:
            parameters["engine"].string_value = engine
            parameters["max_length"].string_value = str(self.buckets[-1])
            parameters["length_multiple"].string_value = str(LENGTH_MULTIPLES[engine])
            parameters["intra_op_thread_count"].string_value = threads
        elif engine == "openvino":
            config.backend = engine
            parameters.clear()
            parameters["INFERENCE_NUM_THREADS"].string_value = threads
            parameters["NUM_STREAMS"].string_value = "1"
        else:
            parameters["intra_op_thread_count"].string_value = threads

    def _add_warmup(self, config: model_config_pb2.ModelConfig) -> None:
        for bucket in self.buckets:
            for rows in (1, self.settings.max_batch_size):
                sample = config.model_warmup.add()
                sample.name = f"length {bucket}, batch {rows}"
                sample.batch_size = rows
                for tensor in config.input:
                    entry = sample.inputs[tensor.name]
                    entry.data_type = tensor.data_type
                    entry.dims[:] = WARMUP_DIMS.get(tensor.name, [bucket])
                    entry.input_data_file = f"{WARMUP_FILES.get(tensor.name, 'ones')}_{bucket}"

    def write_warmup_data(self, step: str, model_folder: Path) -> None:
        """Write the warm-up tensors of the encoder or of the fused step, one row each; Triton repeats it.

        A row of ones is a valid text and a full attention mask alike; to the fused step, a text is a word repeated.
        """
        folder = model_folder / WARMUP_FOLDER
        folder.mkdir()
        for bucket in self.buckets:
            if step == "encoder":
                (folder / f"ones_{bucket}").write_bytes(np.ones(bucket, dtype=np.int64).tobytes())
                continue
            text = ("a " * bucket).encode()
            (folder / f"text_{bucket}").write_bytes(len(text).to_bytes(4, "little") + text)
            (folder / f"history_{bucket}").write_bytes(bytes(4))  # one entry, "", which is padding
            (folder / f"top_k_{bucket}").write_bytes(np.array([10], dtype=np.int32).tobytes())

    def ensemble(self, versions: dict[str, int], models: dict[str, str] | None = None) -> str:
        """The ensemble's config.pbtxt, with every step's version pinned.

        Args:
            versions: by step.
            models: the steps' names on the server, where they are not the domain's own.
        """
        config = committed_config("ensemble")
        config.name = self.domain
        config.max_batch_size = self.settings.max_batch_size
        if self.settings.mode == "fused":
            self._make_one_step(config)
        for entry in config.ensemble_scheduling.step:
            step = entry.model_name
            entry.model_version = versions[step]
            entry.model_name = (models or {}).get(step, step_name(self.domain, step))
        return format_config(config)

    @staticmethod
    def _make_one_step(config: model_config_pb2.ModelConfig) -> None:
        """Let the fused step stand in for the others: it has the whole contract."""
        del config.ensemble_scheduling.step[:]
        entry = config.ensemble_scheduling.step.add(model_name=FUSED)
        for tensor in config.input:
            entry.input_map[tensor.name] = tensor.name
        for tensor in config.output:
            entry.output_map[tensor.name] = tensor.name
