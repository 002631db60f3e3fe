"""The benchmark's arithmetic: shares of the encoder's best rate in the same round, medians over the rounds."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from instructrec_client._wire import encode
from tritonclient.grpc import service_pb2

from loadtest.benchmark.__main__ import Measurement, measure, show
from loadtest.benchmark.bare_encoder import feeds_of, joined
from loadtest.benchmark.contenders import ask_service, keep_asking
from loadtest.benchmark.cores import Cores, listener
from loadtest.benchmark.lean_caller import LeanCaller, check_answer, serialised
from loadtest.errors import LoadTestError
from loadtest.workload import Query
from serving.steps.limits import QUEUE_FULL


def test_a_ratio_is_of_the_best_encoder_of_the_same_round() -> None:
    speed = iter([1.0, 2.0, 4.0])  # the machine gets faster from round to round

    class Drift:
        factor = 1.0

    def encoder() -> tuple[float, float]:
        Drift.factor = next(speed)
        return 1.0, 100 * Drift.factor

    found = measure(
        {
            "encoder alone, batch 1": encoder,
            "encoder alone, batch 8": lambda: (8.0, 200 * Drift.factor),
            "fused, 32 in flight": lambda: (40.0, 150 * Drift.factor),
        },
        rounds=3,
    )
    assert [one.ratio for one in found] == [0.5, 1.0, 0.75]
    assert found[2].ratios == (0.75, 0.75, 0.75)
    assert found[2].per_second == 300
    assert [one.over_encoder_ms for one in found] == [0.0, 7.0, 39.0]
    assert all(one.asking >= 0 for one in found)


def test_rows_are_padded_to_the_longest() -> None:
    feed = joined([[5, 6, 7], [8]])
    np.testing.assert_array_equal(feed["input_ids"], [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(feed["attention_mask"], [[1, 1, 1], [1, 0, 0]])


def test_all_texts_are_encoded_also_those_that_fill_no_batch() -> None:
    rows = [[number] * (1 + number // 8) for number in range(100)]
    for batch in (1, 8, 32, 200):
        feeds = feeds_of(rows, batch)
        assert sorted(feed["input_ids"][row, 0] for feed in feeds for row in range(len(feed["input_ids"]))) == [
            *range(100)
        ]
        assert max(len(feed["input_ids"]) for feed in feeds) == min(batch, 100)


class Asked(list[Query]):
    async def __call__(self, query: Query) -> None:
        self.append(query)
        await asyncio.sleep(0)


async def test_every_instruction_has_its_turn_also_where_seven_divides_their_number() -> None:
    queries = [Query(text=f"shirt {number}") for number in range(28)]
    asked = Asked()
    await keep_asking(asked, queries, in_flight=1, seconds=0.2)
    assert {query.text for query in asked[2:30]} == {query.text for query in queries}, "two before the clock starts"
    service = Service(answer(ITEMS, SCORES))
    with serving(service) as url:
        LeanCaller(url, "shop", queries).run(in_flight=1, seconds=0.2)
    first = [request for _, request in service.asked[:28]]
    assert len(set(first)) == len(first) > 4


def test_the_process_that_listens_is_found_and_none_is_an_error() -> None:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        open_socket.listen()
        port = open_socket.getsockname()[1]
        assert listener(port) == os.getpid()
    with pytest.raises(LoadTestError, match=f"port {port}"):
        listener(port)


def test_a_core_is_kept_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    if len(before) > 1:
        cores = Cores.here()
        with cores.working_on(frozenset({cores.measured})):
            assert os.sched_getaffinity(0) == {cores.measured}
        assert os.sched_getaffinity(0) == before
        with subprocess.Popen(["sleep", "60"]) as other:
            with cores.working_on(frozenset({cores.measured}), other.pid):
                assert os.sched_getaffinity(other.pid) == {cores.measured}
            assert os.sched_getaffinity(other.pid) == before
            other.kill()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(LoadTestError, match="two cores"):
        Cores.here()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_told_to_end_puts_a_servers_cores_back(told: signal.Signals) -> None:
    """What its __main__ does, without a server."""
    code = """if True:
        import sys, time
        from loadtest.benchmark.cores import Cores
        from loadtest.ending import exit_when_told
        exit_when_told()
        cores = Cores.here()
        with cores.working_on(frozenset({cores.measured}), int(sys.argv[1])):
            print("pinned", flush=True)
            time.sleep(60)
    """
    before = os.sched_getaffinity(0)
    if len(before) == 1:
        pytest.skip("one core only")
    with subprocess.Popen(["sleep", "60"]) as other:
        with subprocess.Popen([sys.executable, "-c", code, str(other.pid)], stdout=subprocess.PIPE) as benchmark:
            assert benchmark.stdout is not None
            assert benchmark.stdout.readline() == b"pinned\n"
            assert os.sched_getaffinity(other.pid) != before
            benchmark.send_signal(told)
        assert benchmark.returncode == 128 + told
        assert os.sched_getaffinity(other.pid) == before
        other.kill()


def test_under_nohup_a_benchmark_outlives_its_terminal() -> None:
    code = """if True:
        import os, signal
        from loadtest.ending import exit_when_told
        exit_when_told()
        os.kill(os.getpid(), signal.SIGHUP)
        print("goes on")
    """
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"goes on\n")


def answer(items: list[bytes], scores: list[float]) -> bytes:
    message = service_pb2.ModelInferResponse()
    message.outputs.add(name="item_id", datatype="BYTES", shape=(1, len(items)))
    message.outputs.add(name="score", datatype="FP32", shape=(1, len(scores)))
    message.raw_output_contents.append(b"".join(len(one).to_bytes(4, "little") + one for one in items))
    message.raw_output_contents.append(np.array(scores, np.float32).tobytes())
    return message.SerializeToString()


ITEMS = [f"item-{number}".encode() for number in range(10)]
SCORES = [10.0 - number for number in range(10)]


@pytest.mark.parametrize(
    ("items", "scores", "said"),
    [
        (ITEMS[:9], SCORES[:9], "10 different items"),
        ([*ITEMS[:9], ITEMS[0]], SCORES, "10 different items"),
        (ITEMS, SCORES[::-1], "rise"),
        (ITEMS, [*SCORES[:9], float("nan")], "finite"),
    ],
)
def test_an_answer_that_breaks_the_contract_ends_the_benchmark(
    items: list[bytes], scores: list[float], said: str
) -> None:
    check_answer(answer(ITEMS, SCORES))
    with pytest.raises(LoadTestError, match=said):
        check_answer(answer(items, scores))


class Service(grpc.GenericRpcHandler):
    """Answers every request with the same bytes, or refuses it."""

    def __init__(
        self, message: bytes | None, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, said: str = "no"
    ) -> None:
        self.message, self.asked, self.refusal = message, [], (code, said)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append((details.method, request))
            if self.message is None:
                context.abort(*self.refusal)
            return self.message

        return grpc.unary_unary_rpc_method_handler(handle)


@contextlib.contextmanager
def serving(service: Service) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), handlers=(service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_the_lean_caller_sends_what_a_client_sends_and_counts_the_answers() -> None:
    queries = [Query(text="a blue sh\u00efrt", history=["item-1", "item-2"]), Query(text="shoes")]
    service = Service(answer(ITEMS, SCORES))
    with serving(service) as url:
        p50, rate = LeanCaller(url, "shop", queries).run(in_flight=3, seconds=0.2)
    assert p50 > 0
    assert 0 < rate * 0.15 <= len(service.asked)
    assert {method for method, _ in service.asked} == {"/inference.GRPCInferenceService/ModelInfer"}
    assert {request for _, request in service.asked} == {serialised("shop", query) for query in queries}
    for query in queries:
        sent = service_pb2.ModelInferRequest.FromString(serialised("shop", query))
        [wire] = encode([query.text], [query.history], 10)
        assert sent.model_name == "shop"
        assert [(one.name, one.datatype, list(one.shape)) for one in sent.inputs] == [
            (one.name(), one.datatype(), one.shape()) for one in wire.inputs
        ]
        assert list(sent.raw_input_contents) == [one._get_content() or b"" for one in wire.inputs]


def test_a_refused_request_ends_the_benchmark_with_the_reason() -> None:
    with serving(Service(None)) as url, pytest.raises(LoadTestError, match="INVALID_ARGUMENT: no"):
        LeanCaller(url, "shop", [Query(text="shoes")]).run(in_flight=2, seconds=0.1)


def test_a_queue_that_is_too_short_for_the_load_is_named_as_the_setting_that_it_is() -> None:
    queries, said = [Query(text="shoes")], "serving.max_queue_size is too small: set it to 32 or more, or to 0"
    refusing = Service(None, grpc.StatusCode.UNAVAILABLE, f"in ensemble 'shop', {QUEUE_FULL}: too many requests wait")
    with serving(refusing) as url:
        with pytest.raises(LoadTestError, match=said) as raised:
            LeanCaller(url, "shop", queries).run(in_flight=2, seconds=0.1)
        with pytest.raises(LoadTestError, match=said):
            asyncio.run(ask_service(url, "shop", queries, in_flight=2, seconds=0.1))
    assert "\n" not in raised.value.message


def test_no_number_is_cut_where_the_output_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    what = "the service by the project's own Python client, 32 in flight"
    row = Measurement(
        what=what, p50_ms=1110.25, over_encoder_ms=110.5, asking=0.75, per_second=12345, ratio=0.875, ratios=(0.875,)
    )
    show("bench", [row, row.model_copy(update={"what": "the service, 1 in flight"})])
    printed = capsys.readouterr().out
    for whole in (what, "1110.25", "+110.50", "0.75", "12345", "texts a second", "ratio to the encoder's best"):
        assert whole in printed
    assert "…" not in printed
