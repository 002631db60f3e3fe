"""Triton step `fused`: a person's instruction and history in, the catalogue's best items out, all in one process."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `steps/` of this very release, never another's

from steps.admission import Admission
from steps.batching import answer_batch, tensor
from steps.encoder_engine import open_engine
from steps.ranking import Ranked
from steps.recommendation import Wish
from steps.recommender import Recommender
from steps.text_encoder import Head, TextEncoder
from steps.tokenization import InstructionTokenizer, decode_instructions

Query = tuple[list[str], Wish]


class TritonPythonModel:
    """Requests of all lengths are tokenized together, encoded in runs of similar length, and ranked together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load everything and encode once."""
        folder = Path(__file__).parent
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.encoder = TextEncoder(
            InstructionTokenizer(folder / "tokenizer.json", [int(settings["max_length"])]),
            open_engine(settings["engine"], folder / "model.onnx", int(settings["intra_op_thread_count"])),
            int(settings["length_multiple"]),
        )
        self.head = Head.open(folder)
        self.recommender = Recommender(folder, args["model_name"], args["model_version"])
        instances = sum(group["count"] for group in config["instance_group"])
        self.admission = Admission(
            int(settings["max_queue_size"]), args["model_name"], args["model_version"], instances=instances
        )
        self.encoder.encode(["warm up"])
        if settings["engine"] == "openvino":  # each shape that it meets anew costs 3 to 30 ms
            self.encoder.warm_up(rows=(1, 2, 4, 8), lengths=(16, 32, 48, 64))
        # What is loaded stays: later collections need not look at it.
        gc.collect()
        gc.freeze()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its own k items, or with an error of its own."""
        refusals, admitted = self.admission.split(requests)
        responses = answer_batch(admitted, self._read, self._recommend, self.recommender.tensors)
        self.recommender.report()
        return refusals + responses

    def finalize(self) -> None:
        """Let go of what the server holds."""
        self.admission.close()
        self.recommender.close()

    def _read(self, request: Any) -> Query:
        texts = decode_instructions(tensor(request, "instruction"))
        wish = self.recommender.read(request, rows=len(texts))
        self.recommender.note_unknown(wish)
        return texts, wish

    def _recommend(self, queries: list[Query]) -> list[Ranked]:
        vectors = self.encoder.encode([text for texts, _ in queries for text in texts])
        return self.recommender.rank(vectors, self.head.logits(vectors), [wish for _, wish in queries])
