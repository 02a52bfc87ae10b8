"""Downloads where the network is away, stops or gives something else: one line in time, and nothing half."""

import hashlib
import io
import socket
import threading
import time
import zipfile
from contextlib import contextmanager
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from zfscope import load_network
from zfscope.networks.downloads import ask_server, unpacked


@contextmanager
def refusing():
    """The address of a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def hanging():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def serving(handle):
    """The address of a server whose answers ``handle`` writes; and the requests that it got."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            asked.append((self.command, self.path))
            handle(self)

        do_GET = do_HEAD = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty home for what is downloaded, and no proxy."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def hub_at(monkeypatch, address):
    """As the environment's HF_ENDPOINT does before the hub's code is imported."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


SERVERS = [refusing, pytest.param(hanging, marks=pytest.mark.slow)]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ["timm/test_resnet", "zoo/zfnet"])
def test_without_network_one_line_within_ten_seconds_says_what_to_do(name, server, places, monkeypatch):
    with server() as address:
        hub_at(monkeypatch, address)
        if name == "zoo/zfnet":
            pytest.importorskip("pytorchcv", reason="pip install -e '.[zoo]'")
            monkeypatch.setattr("pytorchcv.models.common.model_store.imgclsmob_repo_url", address)
        began = time.monotonic()

        with pytest.raises(ConnectionError) as refusal:
            load_network(name)

    line = str(refusal.value)
    assert time.monotonic() - began < 10
    assert "\n" not in line
    assert f"could not be downloaded from {address}/" in line
    assert ("no answer within 4 s" if server is hanging else "Connection refused") in line
    assert "weights_file=FILE" in line
    assert str(places) in line
    if name.startswith("timm"):
        assert f"{address}/timm/test_resnet.r160_in1k/resolve/main/model.safetensors (" in line
        assert f"put that file into {places}/torch/hub/checkpoints/timm/test_resnet.r160_in1k/" in line


@pytest.mark.parametrize("server", SERVERS)
def test_torchvision_s_downloads_end_in_time_too(server, places, monkeypatch):
    with server() as address:
        serve_torchvision(monkeypatch, address)
        began = time.monotonic()

        with pytest.raises(ConnectionError, match=f"from {address}/squeezenet.*weights_file=FILE") as refusal:
            load_network("torchvision/squeezenet1_1")

    assert time.monotonic() - began < 10
    assert f"put that file into {places}/torch/hub/checkpoints/" in str(refusal.value)


def stops_within(request):
    """Answer that there is a file, and stop after its first bytes."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(bytes(1000))
        request.wfile.flush()
        time.sleep(3)


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "zoo/zfnet"])
def test_a_server_that_stops_within_a_file_is_left_in_time(name, places, monkeypatch):
    monkeypatch.setattr("zfscope.networks.downloads.SECONDS_WITHOUT_BYTES", 0.3)
    with serving(stops_within) as (address, _):
        if name == "zoo/zfnet":
            pytest.importorskip("pytorchcv", reason="pip install -e '.[zoo]'")
            monkeypatch.setattr("pytorchcv.models.common.model_store.imgclsmob_repo_url", address)
        else:
            serve_torchvision(monkeypatch, address)
        began = time.monotonic()

        with pytest.raises(ConnectionError, match=f"from {address}/.*timed out.*weights_file=FILE"):
            load_network(name)

        assert time.monotonic() - began < 2.5
    assert not any(path.is_file() for path in places.rglob("*"))


def serve_torchvision(monkeypatch, address):
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    served = type("Entry", (), {"url": f"{address}/squeezenet1_1-b8a52dc0.pth", "transforms": entry.transforms})
    served.get_state_dict = lambda self, **options: torch.hub.load_state_dict_from_url(self.url, **options)
    monkeypatch.setattr("zfscope.networks.public._torchvision_entry", lambda name: served())


def zipped(name, content):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, content)
        return file.getvalue()


def test_a_file_comes_out_of_its_archive_once_and_whole_or_not_at_all(tmp_path):
    content, file = b"weights", tmp_path / "models/zfnet.pth"
    sha1 = hashlib.sha1(content).hexdigest()
    served = zipped("zfnet.pth", content)

    def serve(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(served)

    with serving(serve) as (address, asked):
        assert unpacked(address, file, sha1).read_bytes() == content
        assert unpacked(address, file, sha1) == file and len(asked) == 1
        file.write_bytes(b"half")
        assert unpacked(address, file, sha1).read_bytes() == content and len(asked) == 2

        with pytest.raises(ValueError, match="another checksum"):
            unpacked(address, tmp_path / "models/zfnet.pth", hashlib.sha1(b"other").hexdigest())
        served = served[:-30]
        with pytest.raises(zipfile.BadZipFile):
            unpacked(address, tmp_path / "other/zfnet.pth", sha1)

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["zfnet.pth"]
    assert file.read_bytes() == content


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


def test_a_file_put_where_the_line_says_is_taken_without_asking(places, weights, monkeypatch):
    folder = places / "torch/hub/checkpoints/timm/test_resnet.r160_in1k"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with serving(lambda request: request.send_error(500)) as (address, asked):
        hub_at(monkeypatch, address)

        network = load_network("timm/test_resnet")

    assert asked == []
    assert all(torch.equal(network.body.state_dict()[name], tensor) for name, tensor in weights.items())


def test_the_hub_s_cache_is_taken_without_asking(places, weights, monkeypatch):
    folder = places / "hub/models--timm--test_resnet.r160_in1k"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    safetensors.torch.save_file(weights, folder / "snapshots/abc/model.safetensors")
    with serving(lambda request: request.send_error(500)) as (address, asked):
        hub_at(monkeypatch, address)

        network = load_network("timm/test_resnet.r160_in1k")

    assert asked == []
    assert torch.equal(network.body.fc.weight, weights["fc.weight"])


@pytest.mark.parametrize("format_", ["safetensors", "torch"])
def test_what_the_hub_serves_is_downloaded_and_loaded(format_, places, weights, monkeypatch, tmp_path):
    path = tmp_path / "served"
    safetensors.torch.save_file(weights, path) if format_ == "safetensors" else torch.save(weights, path)
    content, file = path.read_bytes(), "model.safetensors" if format_ == "safetensors" else "pytorch_model.bin"

    def handle(request):
        if not request.path.endswith(f"/timm/test_resnet.r160_in1k/resolve/main/{file}"):
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        request.send_response(200)
        request.send_header("ETag", '"1234"')
        request.send_header("X-Repo-Commit", "a" * 40)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    with serving(handle) as (address, asked):
        hub_at(monkeypatch, address)

        network = load_network("timm/test_resnet")

    assert torch.equal(network.body.fc.weight, weights["fc.weight"])
    assert asked


def test_a_server_that_answers_anything_is_within_reach_and_one_that_drops_is_not():
    for code in (200, 302, 403, 405, 500):
        with serving(lambda request, code=code: request.send_error(code)) as (address, asked):
            ask_server(address + "/x")
        assert ("HEAD", "/x") in asked

    dropping = serving(lambda request: None)
    with dropping as (address, _), pytest.raises((OSError, HTTPException), match="closed connection without response"):
        ask_server(address)


def test_a_name_that_takes_long_to_resolve_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    began = time.monotonic()

    with pytest.raises(TimeoutError, match="no answer within 0.2 s"):
        ask_server("http://slow.example/x", seconds=0.2)

    assert time.monotonic() - began < 5
