"""`make bench` on the shared server: every contender answers, and what it writes can be read."""

import json

from project import Project


def test_bench_measures_all_contenders_and_leaves_the_server_its_cores(server: Project) -> None:
    printed = server.make("bench", "ROUNDS=2", "BENCH_SECONDS=0.2").stdout
    assert "FastAPI, 32 in flight" in printed
    [path] = (server.var / "bench").glob("*.json")
    report = json.loads(path.read_text())
    assert report["mode"] == "ensemble"
    assert report["machine"]["cores"] >= 2
    measured = {one["what"]: one for one in report["measurements"]}
    assert set(measured) == {
        *(f"encoder alone, batch {batch}" for batch in (1, 8, 16, 32)),
        *(f"ensemble, {number} in flight" for number in (1, 8, 32)),
        *(f"ensemble, {number} in flight, Python client" for number in (1, 32)),
        "FastAPI, 32 in flight",
        "FastAPI without ranking, 32 in flight",
    }
    assert all(one["per_second"] > 0 and len(one["ratios"]) == 2 for one in measured.values())
    assert max(one["ratio"] for name, one in measured.items() if name.startswith("encoder")) <= 1
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
