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
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
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
    [(None, "cannot be read: No such file"), ("folder", "cannot be read: Is a directory"), (b"\x30\x82", "is not PEM")],
)
def test_a_file_that_does_not_do_is_named_when_the_client_is_made(client, name, content, message, tmp_path):
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    good.write_text("-----BEGIN CERTIFICATE-----\n")
    if content == "folder":
        bad.mkdir()
    elif content is not None:
        bad.write_bytes(content)
    tls = Tls(**{"private_key": good, "certificate_chain": good, name: bad})
    with pytest.raises(ValueError, match=f"^tls: {name} {bad} {message}[^\n]*$"):
        client("127.0.0.1:1", tls=tls)


def test_a_split_connects_as_its_client_does(pair, credentials):
    key, certificate = pair
    tls = Tls(root_certificates=certificate, private_key=key, certificate_chain=certificate)
    with serving(credentials=credentials) as (_, url), Client(url, tls=tls) as client, CanarySplit(client) as split:
        assert split.recommend("a shirt", user_id="u-17")[0].item_id == "item_id"
        assert "PRIVATE KEY" not in repr(vars(client))
