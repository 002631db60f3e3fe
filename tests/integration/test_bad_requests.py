"""Each bad request gets its own clear error, while its neighbours in the same batch are answered."""

import random
import urllib.request

import numpy as np
import pytest
from project import Project
from wire import request, send_together

GOOD = b"I want to buy a blue shirt"
LIMIT = 16_384


def wrong_dtype() -> dict[str, np.ndarray]:
    arrays = request([GOOD])
    return {**arrays, "top_k": arrays["top_k"].astype(np.int64)}


def missing_input() -> dict[str, np.ndarray]:
    arrays = request([GOOD])
    del arrays["top_k"]
    return arrays


BAD = {
    "empty": (request([b""]), "empty"),
    "blank": (request([b" \t\n"]), "empty"),
    "blank by Unicode": (request(["\u2003\u00a0".encode()]), "empty"),
    "blank to the eye": (request(["\u200b\ufeff\0".encode()]), "empty"),
    "20 MB": (request([b"blue " * 4_000_000]), "20,000,000 bytes"),
    "just too long": (request([b"x" * (LIMIT + 1)]), "16,384"),
    "not UTF-8": (request([b"caf\xe9"]), "UTF-8"),
    "one bad row of three": (request([GOOD, b"\xff", GOOD]), "row 1"),
    "top_k 0": (request([GOOD], k=0), "top_k is 0"),
    "top_k 101": (request([GOOD], k=101), "top_k is 101"),
    "top_k negative": (request([GOOD], k=-(2**31)), "from 1 to 100"),
    "top_k differs": ({**request([GOOD, GOOD]), "top_k": np.array([[3], [4]], dtype=np.int32)}, "differs"),
    "history too long": (request([GOOD], history=[[b"sku-0001"] * 1_001]), "1,001"),
    "batch over the maximum": (request([GOOD] * 33), "batch-size must be <= 32"),
    "wrong dtype": (wrong_dtype(), "top_k"),
    "missing input": (missing_input(), "top_k|input"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_gets_its_own_error_and_harms_no_neighbour(server: Project, kind: str) -> None:
    bad, message = BAD[kind]
    good = request([GOOD])
    answers = send_together(server.grpc_url, server.domain, [good, bad, good, good, bad, good, good, good])
    for number, answer in enumerate(answers):
        if number in (1, 4):
            assert answer.status == "INVALID_ARGUMENT", answer.error
            assert any(part in str(answer.error) for part in message.split("|")), answer.error
        else:
            assert answer.status == "OK", answer.error
            assert answer.result.as_numpy("item_id").shape == (1, 5)


def test_an_error_never_repeats_what_the_person_wrote(server: Project) -> None:
    secret = "my-card-is-4111-1111-1111-1111"
    bad = request([secret.encode() + b"\xff", secret.encode() * 1_000])
    answer = send_together(server.grpc_url, server.domain, [bad])[0]
    assert answer.status == "INVALID_ARGUMENT"
    assert secret not in str(answer.error)
    assert secret not in (server.var / "logs" / "triton.log").read_text(errors="replace")


def test_unknown_history_is_ignored_and_counted(server: Project) -> None:
    def counted() -> float:
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("instructrec_unknown_history_items{"))

    before = counted()
    without, unknown, padded = send_together(
        server.grpc_url,
        server.domain,
        [
            request([GOOD]),
            request([GOOD], history=[[b"no such item", b"nor this"]]),
            request([GOOD], history=[[b"", b"", b""]]),
        ],
    )
    for answer in (unknown, padded):
        assert answer.status == "OK", answer.error
        assert (answer.result.as_numpy("item_id") == without.result.as_numpy("item_id")).all()
        assert (answer.result.as_numpy("reason")[..., 2] == 0).all()
    assert counted() - before == 2


def test_text_beyond_the_encoder_is_truncated(server: Project) -> None:
    long = b"blue shirt " * 1_000
    longer = long + b"or rather a red lamp"
    first, second = send_together(server.grpc_url, server.domain, [request([long]), request([longer])])
    np.testing.assert_array_equal(first.result.as_numpy("item_id"), second.result.as_numpy("item_id"))


def test_the_encoder_takes_no_text_that_the_tokenizer_would_have_cut(server: Project) -> None:
    """Whoever reaches the port may ask any step."""

    def tokens(length: int) -> dict[str, np.ndarray]:
        return dict.fromkeys(("input_ids", "attention_mask"), np.ones((1, length), dtype=np.int64))

    encoder = f"{server.domain}_encoder"
    good, bad = send_together(server.grpc_url, encoder, [tokens(64), tokens(10_000)])
    assert good.status == "OK", good.error
    assert bad.status == "INVALID_ARGUMENT"
    assert "a text has 10,000 tokens" in str(bad.error)


def test_an_answer_does_not_depend_on_who_shares_the_batch(server: Project) -> None:
    texts = [b"a blue shirt", b"mug", b"something warm that my daughter can wear on the way to school in winter " * 4]
    alone = [send_together(server.grpc_url, server.domain, [request([text], k=10)])[0] for text in texts]
    together = send_together(server.grpc_url, server.domain, [request([texts[i % 3]], k=10) for i in range(48)])
    in_one_request = send_together(server.grpc_url, server.domain, [request(texts * 10, k=10)])[0]
    for number, answer in enumerate(together):
        reference = alone[number % 3].result
        np.testing.assert_allclose(answer.result.as_numpy("score"), reference.as_numpy("score"), atol=1e-4)
        np.testing.assert_allclose(
            in_one_request.result.as_numpy("score")[number % 30],
            alone[number % 30 % 3].result.as_numpy("score")[0],
            atol=1e-4,
        )


def hostile_request(chooser: random.Random) -> dict[str, np.ndarray]:
    """Anything a careless or hostile caller may send, sound parts included."""
    rows = chooser.choice([1, 1, 1, 2, 5, 32, 33, 60])
    arrays = request(
        [hostile_text(chooser) for _ in range(rows)],
        history=[
            [chooser.randbytes(chooser.randrange(40)) for _ in range(entries)]
            for entries in [chooser.choice([0, 1, 3, 50])] * rows
        ],
        k=chooser.choice([10, 10, 1, 100, 0, 101, -1, 2**31 - 1]),
    )
    match chooser.randrange(12):
        case 0:
            del arrays[chooser.choice(sorted(arrays))]
        case 1:
            arrays["top_k"] = arrays["top_k"].astype(chooser.choice([np.int64, np.float32, np.bool_]))
        case 2:
            arrays["instruction"] = np.repeat(arrays["instruction"], 2, axis=1)
        case 3:
            arrays["unheard_of"] = np.zeros((rows, 1), dtype=np.float32)
        case 4:
            arrays["top_k"] = arrays["top_k"][:, 0]
        case 5:
            arrays["history"] = arrays["history"][: rows // 2]
    return arrays


def hostile_text(chooser: random.Random) -> bytes:
    match chooser.randrange(6):
        case 0:
            return chooser.randbytes(chooser.randrange(200))
        case 1:
            return "".join(chr(chooser.randrange(0x20, 0xD800)) for _ in range(chooser.randrange(100))).encode()
        case 2:
            return chooser.choice(
                [b"", b" ", b"\0", b"\xc0\xaf", "\u202e\ufeff\u0301".encode(), b"[MASK] [SEP]", b"{{7*7}}"]
            )
        case 3:
            return chooser.choice([b"a", b"\xf0\x9f\x91\x95", b"blue "]) * chooser.randrange(4_000)
        case _:
            return b"something blue"


def test_ten_thousand_hostile_requests_leave_the_server_healthy(server: Project) -> None:
    chooser = random.Random(20_240)  # noqa: S311 - seeded, so that a failure repeats
    before = server.make("status").stdout
    statuses: dict[str, int] = {}
    for _ in range(20):
        for answer in send_together(server.grpc_url, server.domain, [hostile_request(chooser) for _ in range(500)]):
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
    assert set(statuses) <= {"OK", "INVALID_ARGUMENT", "UNAVAILABLE"}, statuses
    assert statuses["OK"] > 500
    assert statuses["INVALID_ARGUMENT"] > 500
    after = server.make("status").stdout
    assert after.split(",")[0] == before.split(",")[0], "the server process changed"
    assert "answers a real instruction" in after
