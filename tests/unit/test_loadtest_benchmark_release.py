"""What the benchmark opens of a release: the files that its manifest names, as the server opens them."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_parts import release_of

from loadtest.benchmark.bare_encoder import BareEncoder, ReleaseEncoder, joined
from loadtest.benchmark.contenders import ask_plain, plain_service_process
from loadtest.benchmark.plain_service import plain_service
from loadtest.benchmark.release_files import ReleaseFiles
from loadtest.errors import LoadTestError
from loadtest.workload import Query
from serving.errors import ReleaseError
from serving.manifest import Manifest
from serving.steps.encoder_engine import open_engine
from serving.steps.text_encoder import TextEncoder
from serving.steps.tokenization import InstructionTokenizer

LONG = " ".join(f"w{number}" for number in range(60))
CUT = " ".join(f"w{number}" for number in range(40))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("mode", "shared"), [("ensemble", False), ("ensemble", True), ("fused", False)])
def test_files_are_found_whatever_the_steps_are_called(tmp_path: Path, mode: str, shared: bool, engine: str) -> None:
    release = release_of(tmp_path, mode, engine=engine, share_steps=shared)
    assert (release.models / "shop_encoder").exists() == (mode == "ensemble" and not shared)
    files = ReleaseFiles.of(release.path, "shop")
    assert (files.mode, files.engine, files.limit) == (mode, engine, 40)
    assert files.graph.read_text() == "graph"
    assert files.tokenizer.read_text() == "tokens"
    assert (files.catalogue / "item_vectors.npy").read_text() == "vectors"


def test_what_is_no_release_of_the_domain_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="it is no release"):
        ReleaseFiles.of(tmp_path, "shop")
    release = release_of(tmp_path, "fused")
    with pytest.raises(LoadTestError, match=f"{release.path} is a release of shop, not of news: .*--release"):
        ReleaseFiles.of(release.path, "news")
    next(release.models.glob("*/5/model.onnx")).write_text("other")
    with pytest.raises(ReleaseError, match="sha256"):
        ReleaseFiles.of(release.path, "shop")


def test_openvino_computes_as_the_server_has_it_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    files = ReleaseFiles.of(release_of(tmp_path, "fused", engine="openvino", working=True).path, "shop")
    compile_model, asked = openvino.Core.compile_model, []

    def noting(core: Any, path: str, device: str, settings: dict[str, Any]) -> Any:
        asked.append(settings)
        return compile_model(core, path, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", noting)
    open_engine("openvino", files.graph, threads=1)
    BareEncoder(files, [CUT])
    plain_service(files)
    assert len(asked) == 3
    assert asked[0] == asked[1] == asked[2]
    assert asked[0]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_vectors_are_the_servers_own_also_of_a_text_that_is_cut(tmp_path: Path, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    files = ReleaseFiles.of(release_of(tmp_path, "ensemble", engine=engine, working=True).path, "shop")
    encoder = ReleaseEncoder(files)
    served = TextEncoder(InstructionTokenizer(files.tokenizer, [16, 40]), open_engine(engine, files.graph, 1), 1)
    for text in ("w1", "w1 w2 w3 w4 w5 w6 w7 w8", CUT, LONG):
        np.testing.assert_array_equal(encoder.run(joined(encoder.tokens([text]))), served.encode([text]))


async def test_the_plain_service_cuts_where_the_release_does_and_can_leave_the_ranking_out(tmp_path: Path) -> None:
    release = release_of(tmp_path, "ensemble", working=True)
    assert Manifest.read(release.path).domain == "shop"
    queries = [Query(text=LONG), Query(text="w3 w4")]
    with plain_service_process(release.path, "shop", os.getpid()) as (_, port):

        def answer(door: str, text: str) -> Any:
            body = json.dumps({"instruction": text}).encode()
            url, headers = f"http://127.0.0.1:{port}/{door}", {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as response:
                return json.load(response)

        assert answer("recommend", LONG) == answer("recommend", CUT) != answer("recommend", CUT[: len(CUT) // 2])
        assert answer("encode", LONG)["item_id"] == [f"item-{row}" for row in range(10)]
        for door in ("recommend", "encode"):
            p50, rate = await ask_plain(port, door, queries, 2, 0.1)
            assert p50 > 0
            assert rate > 0
