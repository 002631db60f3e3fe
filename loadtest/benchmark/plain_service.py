"""The baseline: what a backend engineer writes in an hour with FastAPI and ONNX Runtime, one request at a time.

The same files, engine and catalogue as the release: tokenize, encode, rank all items by similarity, answer in JSON. It
has no head, no histories, no batching and no checks, so it does less than the service it is held against. A second door
leaves the ranking out as well: what the service gains by other means than a better one is its factor over that.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from loadtest.benchmark.bare_encoder import ReleaseEncoder, joined
from loadtest.benchmark.release_files import ReleaseFiles
from serving.steps.text_encoder import Vectors


class Ask(BaseModel):
    """A request: an instruction, and how many items are wanted."""

    instruction: str
    top_k: int = Field(default=10, ge=1, le=100)


def plain_service(files: ReleaseFiles) -> FastAPI:
    """The application: `POST /recommend`, `POST /encode`, which answers with the first items, and `GET /ready`."""
    encoder = ReleaseEncoder(files)
    vectors = np.load(files.catalogue / "item_vectors.npy", allow_pickle=False)
    offsets = np.load(files.catalogue / "item_ids.offsets.npy", allow_pickle=False)
    names = np.load(files.catalogue / "item_ids.bytes.npy", allow_pickle=False)
    item_ids = [names[start:end].tobytes().decode() for start, end in itertools.pairwise(offsets.tolist())]
    service = FastAPI()

    def encode(text: str) -> Vectors:
        return encoder.run(joined(encoder.tokens([text])))

    @service.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @service.post("/recommend")
    async def recommend(ask: Ask) -> dict[str, Any]:
        scores = vectors @ encode(ask.instruction)[0]
        best = np.argpartition(-scores, ask.top_k)[: ask.top_k]
        best = best[np.argsort(-scores[best])]
        return {"item_id": [item_ids[row] for row in best], "score": scores[best].tolist()}

    @service.post("/encode")
    async def unranked(ask: Ask) -> dict[str, Any]:
        return {"item_id": item_ids[: ask.top_k], "score": encode(ask.instruction)[0, : ask.top_k].tolist()}

    return service


@click.command(help=__doc__)
@click.option("--release", type=click.Path(path_type=Path), required=True)
@click.option("--domain", required=True)
@click.option("--port", type=int, required=True)
def main(release: Path, domain: str, port: int) -> None:
    """Serve on loopback until killed."""
    uvicorn.run(plain_service(ReleaseFiles.of(release, domain)), host="127.0.0.1", port=port, log_level="error")


def answer_of(body: bytes) -> list[str]:
    """The item ids of an answer."""
    ids: list[str] = json.loads(body)["item_id"]
    return ids


if __name__ == "__main__":
    main()
