"""Triton step `tokenizer`: a person's instruction in, token ids padded to a length bucket out."""

import json
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` of this very release, never another's

from steps.admission import Admission
from steps.batching import answer_batch, tensor
from steps.tokenization import InstructionTokenizer, decode_instructions


class TritonPythonModel:
    """Tokenizes all requests of a batch in one call of the Rust tokenizer."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and run it once, so that the first request is not slower than the second."""
        parameters = json.loads(args["model_config"])["parameters"]
        buckets = [int(length) for length in parameters["length_buckets"]["string_value"].split(",")]
        self.tokenizer = InstructionTokenizer(Path(__file__).parent / "tokenizer.json", buckets)
        bound = int(parameters["max_queue_size"]["string_value"])
        self.admission = Admission(bound, args["model_name"], args["model_version"])
        self.tokenizer.encode(["warm up"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with `input_ids` and `attention_mask`, or with an error of its own."""
        refusals, admitted = self.admission.split(requests)
        return refusals + answer_batch(admitted, self._read, self._tokenize, self._write)

    def finalize(self) -> None:
        """Let go of what the server holds."""
        self.admission.close()

    def _read(self, request: Any) -> list[str]:
        return decode_instructions(tensor(request, "instruction"))

    def _tokenize(self, texts: list[list[str]]) -> list[Any]:
        token_ids = iter(self.tokenizer.encode([text for rows in texts for text in rows]))
        return [self.tokenizer.pad([next(token_ids) for _ in rows]) for rows in texts]

    def _write(self, padded: Any) -> list[Any]:
        input_ids, attention_mask = padded
        return [pb_utils.Tensor("input_ids", input_ids), pb_utils.Tensor("attention_mask", attention_mask)]
