"""Pictures on the web: a slow, lying or missing server costs bounded time, and a network that is gone ends a run."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from freezealign import FreezeAlign, FrozenEncoder, inputs
from freezealign.encoders.callable import CallableEncoder
from freezealign.inputs import DownloadError, InputError, download

PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, "PNG")


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path; closes the connection without a word from picture ``down`` on."""

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        if rest.removesuffix(".png").isdecimal() and int(rest.removesuffix(".png")) >= self.server.down:
            self.connection.close()
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "drip-headers":
            self.drip(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 90)
        elif kind == "drip":
            self.drip(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1000)
        elif kind.isdecimal() and kind != "200":
            self.send_error(int(kind))
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG.getvalue())

    def drip(self, content: bytes) -> None:
        for byte in content:
            try:
                self.connection.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    inputs._failed.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.down, server.daemon_threads = 1000, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.at = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    inputs._failed.clear()


@pytest.mark.parametrize("kind", ["drip", "drip-headers"])
def test_a_server_that_sends_a_byte_at_a_time_is_given_up_in_time(kind, server, monkeypatch):
    monkeypatch.setattr(inputs, "URL_TOTAL_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"/{kind}: it took more than 0\.3 s"):
        download(f"{server.at}/{kind}")
    assert time.monotonic() - start < 3


def test_a_name_that_is_never_found_is_given_up_in_time(server, monkeypatch):
    monkeypatch.setattr(inputs, "URL_TOTAL_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    with pytest.raises(InputError, match="took more than"):
        download("http://nowhere.example/a.png")
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("scheme", ["ftp", "file", "gopher", "data"])
def test_a_redirect_off_the_web_is_refused_before_anything_is_opened(scheme, server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.3)
        target = {
            "ftp": f"ftp://127.0.0.1:{other.getsockname()[1]}/a.png",
            "gopher": f"gopher://127.0.0.1:{other.getsockname()[1]}/a.png",
            "file": (tmp_path / "a.png").as_uri(),
            "data": "data:image/png;base64,AA",
        }[scheme]
        (tmp_path / "a.png").write_bytes(PNG.getvalue())
        with pytest.raises(InputError, match=f"cannot fetch .*{scheme}:"):
            download(f"{server.at}/to/{target}")
        with pytest.raises(TimeoutError):
            other.accept()


def test_a_redirect_on_the_web_is_followed(server):
    assert download(f"{server.at}/to/{server.at}/200/a.png") == PNG.getvalue()


@pytest.mark.parametrize(("code", "ends"), [(404, False), (403, False), (410, False), (429, True), (503, True)])
def test_a_server_that_says_that_there_is_no_such_picture_is_there(code, ends, server, monkeypatch):
    monkeypatch.setattr(inputs, "URL_FAILURES", 3)
    for number in range(7):
        kind = DownloadError if ends and number % 3 == 2 else InputError
        with pytest.raises(kind, match=f"HTTP Error {code}"):
            download(f"{server.at}/{code}/{number}")


def test_one_that_is_fetched_begins_the_count_anew(server, monkeypatch):
    monkeypatch.setattr(inputs, "URL_FAILURES", 3)
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(InputError):
                download(f"{server.at}/503/x")
        download(f"{server.at}/200/x")


def model() -> FreezeAlign:
    def ones(items):
        return np.ones((len(items), 2), np.float32)

    encoders = [FrozenEncoder(CallableEncoder(ones, name, 2)) for name in ("image", "text")]
    return FreezeAlign(encoders, dim=2, device="cpu")


def test_a_network_that_goes_ends_the_run_with_one_error_and_keeps_what_was_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "URL_FAILURES", 5)

    pairs = [(f"{server.at}/200/{number}.png", f"picture {number}") for number in range(40)]
    options = {"path": tmp_path / "store", "level": "pooled", "batch_size": 2, "shard_size": 4}
    server.down = 20
    with pytest.raises(DownloadError, match=r"5 downloads failed in a row.*the last: cannot fetch http.*run it again"):
        model().extract_features(iter(pairs), show_progress_bar=False, **options)
    assert len(list((tmp_path / "store/shards").glob("*.json"))) >= 5
    server.down = 1000
    store = model().extract_features(iter(pairs), show_progress_bar=False, **options)
    assert len(store) + len(store.skipped) == 40 and store.ids[:20] == [str(number) for number in range(20)]
