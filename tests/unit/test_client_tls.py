"""TLS in the client: the files are checked when a client is made, and what is in them is what it connects with."""

import shutil
import subprocess

import grpc
import pytest
from client_helpers import awaited, blocking, serving
from instructrec_client import AsyncClient, CanarySplit, Client, ServerUnavailable, Tls

both = pytest.mark.parametrize("ask", [blocking, awaited])
twins = pytest.mark.parametrize("client", [Client, AsyncClient])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A key and the certificate of 127.0.0.1 that it signs itself."""
    return make_pair(tmp_path_factory.mktemp("tls"))


def make_pair(folder):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run([*made.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return key, certificate


@pytest.fixture
def credentials(pair):
    """Of a server that also wants to know its clients."""
    key, certificate = (path.read_bytes() for path in pair)
    return grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)


@both
def test_both_sides_know_each_other(ask, pair, credentials):
    key, certificate = pair
    tls = Tls(root_certificates=certificate, private_key=str(key), certificate_chain=certificate)
    with serving(credentials=credentials) as (_, url):
        assert ask(url, settings={"tls": tls})[0].item_id == "item_id"
        with pytest.raises(ServerUnavailable):
            ask(url, settings={"tls": True, "retries": 0})


@twins
@pytest.mark.parametrize("name", ["root_certificates", "private_key", "certificate_chain"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        (b"\x30\x82", "is not PEM"),
        ("cut", "(holds no certificate that is whole|does not hold the key of .*, whole)"),
        ("swapped", "(holds no certificate that is whole|does not hold the key of )"),
    ],
)
def test_a_file_that_does_not_do_is_named_when_the_client_is_made(client, name, content, message, pair, tmp_path):
    good = {"private_key": pair[0], "certificate_chain": pair[1], "root_certificates": pair[1]}
    bad = tmp_path / "bad.pem"
    if content == "cut":
        bad.write_bytes(good[name].read_bytes()[:400])
    elif content == "swapped":
        bad.write_bytes(next(path for path in pair if path != good[name]).read_bytes())
    elif content == "folder":
        bad.mkdir()
    elif content is not None:
        bad.write_bytes(content)
    tls = Tls(**{**good, name: bad})
    with pytest.raises(ValueError, match=f"^tls: {name} {bad} {message}[^\n]*$"):
        client("127.0.0.1:1", tls=tls)


def test_a_split_connects_as_its_client_does(pair, credentials):
    key, certificate = pair
    tls = Tls(root_certificates=certificate, private_key=key, certificate_chain=certificate)
    with serving(credentials=credentials) as (_, url), Client(url, tls=tls) as client, CanarySplit(client) as split:
        assert split.recommend("a shirt", user_id="u-17")[0].item_id == "item_id"
        assert "PRIVATE KEY" not in repr(vars(client))


@twins
def test_the_key_of_another_certificate_is_refused_when_the_client_is_made(client, pair, tmp_path):
    other, _ = make_pair(tmp_path)
    with pytest.raises(ValueError, match=f"^tls: private_key {other} does not hold the key of {pair[1]}[^\n]*$"):
        client("127.0.0.1:1", tls=Tls(private_key=other, certificate_chain=pair[1]))


@twins
@pytest.mark.parametrize("tls", ["ca.pem", 1, {"root_certificates": "ca.pem"}])
def test_what_is_no_tls_is_refused(client, tls):
    with pytest.raises(ValueError, match=r"^tls is a Tls, True or None, got "):
        client("127.0.0.1:1", tls=tls)


@both
def test_a_server_that_is_not_trusted_or_speaks_no_tls_is_not_taken_for_one_that_is_away(ask, pair, credentials):
    with serving(credentials=credentials) as (_, encrypted), serving() as (_, plain):
        for url, tls in ((encrypted, True), (plain, Tls(root_certificates=pair[1]))):
            with pytest.raises(ServerUnavailable, match=f"{url} and this client do not agree on TLS .*: check that"):
                ask(url, settings={"tls": tls, "retries": 0})
