"""Remote shards: cached whole, by many processes at once, within a limit, checked."""

import contextlib
import fcntl
import functools
import gzip
import http.server
import json
import multiprocessing
import os
import pickle
import select
import threading
import time
from hashlib import sha256
from pathlib import Path

import fsspec
import pytest

import data.shards.remote_cache
from data.clips.batch_order import BatchOrder
from data.clips.batches import batches
from data.clips.dataset import ClipConfig, ClipDataset
from data.shards.index import ShardIndex
from data.shards.remote_cache import CACHE_VARIABLE, ShardCache
from data.verify import verify
from tests.builders.packed import pack


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts requests, and fails once for each item of `server.failures`."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if server.failures:
            failure = server.failures.pop(0)
            if isinstance(failure, int):
                self.send_error(failure)
                return
            body = Path(self.translate_path(self.path)).read_bytes()
            if failure == "slow head":
                body = b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000
            else:
                self.send_response(200)
            if failure == "slow head" or failure == "slow":
                if failure == "slow":
                    self.end_headers()
                with contextlib.suppress(OSError):
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        if select.select([self.connection], [], [], 0.01)[0]:
                            return  # the client has closed the connection
                return
            if failure == "html":
                body = b"<!DOCTYPE html><html><body>Please log in</body></html>"
            elif failure == "gzip":
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(body)))
            elif failure == "cut without a length":
                body = body[: len(body) // 2]
            elif failure == "part of an index":
                body = b'{"schema": 2, "entries": {"key": [5]}}'
            elif failure == "no index":
                body = b"[1]"
            elif failure == "empty":
                body = b""
            elif failure == "cut":
                self.send_header("Content-Length", str(len(body)))
                body = body[: len(body) // 2]
            elif failure == "changed":
                body = bytes([body[0] ^ 1]) + body[1:]
            self.end_headers()
            self.wfile.write(body)
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [12, 9, 15, 8, 10, 11])


@pytest.fixture
def server(packed):
    handler = functools.partial(Handler, directory=str(packed))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests, server.failures = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hurry(monkeypatch, failure):
    """Give up soon on a server that is slow; not on one that a busy machine slows down."""
    if "slow" in str(failure):
        monkeypatch.setattr(data.shards.remote_cache, "GRACE", 0.2)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Failed downloads are tried again at once."""
    monkeypatch.setattr(data.shards.remote_cache, "WAIT", 0.001)


def tars(folder):
    return sorted(path.name for path in folder.glob("*.tar"))


def test_a_remote_set_gives_what_a_local_one_gives(server, packed, tmp_path):
    local, remote = ShardIndex.load(packed), ShardIndex.load(server.url + "/", ShardCache(tmp_path))
    assert server.requests == ["/index.json"]
    assert list(remote.entries) == list(local.entries)
    assert [remote.read(i) for i in range(6)] == [local.read(i) for i in range(6)]
    assert sorted(server.requests[1:]) == [f"/shard-00000{i}.tar" for i in range(3)]
    again = ShardIndex.load(server.url, ShardCache(tmp_path))
    again.read(0)
    assert server.requests[4:] == ["/index.json"]  # a small file that may have changed
    assert pickle.loads(pickle.dumps(again)).read(5) == local.read(5)


def test_clips_load_from_an_address_through_workers(server, packed, tmp_path):
    def load(folder, workers, **options):
        config = ClipConfig(folder=str(folder), frames=3, height=32, width=32, **options)
        dataset = ClipDataset(config, seed=0)
        order = BatchOrder(dataset.shard_sizes, 2, seed=0)
        return [b["video"].sum().item() for b in batches(dataset, order, 0, 3, workers=workers)]

    remote = load(server.url, 2, cache=str(tmp_path / "cache"))
    assert remote == load(packed, 0)
    assert len(tars(tmp_path / "cache")) == 3


def read_all(url, folder, limit_gb, together, results):
    index = ShardIndex.load(url, ShardCache(folder, limit_gb))
    together.wait(60)  # both ask for the first shard at once
    content = b"".join(index.read(i) for _ in range(2) for i in range(6))
    results.put(sha256(content).hexdigest())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("room", ["all", "one"])
def test_processes_share_one_cache(server, packed, tmp_path, room):
    index = ShardIndex.load(packed)
    sizes = [shard.bytes for shard in index.shards]
    limit = (sum(sizes) * 1.1 if room == "all" else max(sizes) * 1.5) / 1e9
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    arguments = (server.url, tmp_path, limit, fork.Barrier(2), results)
    processes = [fork.Process(target=read_all, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = sha256(b"".join(index.read(i) for _ in range(2) for i in range(6))).hexdigest()
    assert [results.get() for process in processes if process.exitcode == 0] == [expected] * 2
    shards = [path for path in server.requests if path.endswith("tar")]
    if room == "all":
        assert len(shards) == 3  # each once, by one of the two
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= limit * 1e9
    assert not list(tmp_path.glob("*.part"))


def test_the_least_recently_used_shard_makes_room(server, packed, tmp_path):
    index = ShardIndex.load(packed)
    names = [f"{shard.sha256}.tar" for shard in index.shards]
    sizes = [shard.bytes for shard in index.shards]
    shards = ShardCache(tmp_path, limit_gb=(sum(sizes) - 1) / 1e9)

    def use(number):
        shard = index.shards[number]
        os.close(shards.open(f"{server.url}/{shard.name}", shard.bytes, shard.sha256))
        os.utime(tmp_path / names[number], ns=(use.time, use.time))
        use.time += 10**9

    use.time = time.time_ns() - 10**12
    for number in (0, 1, 0):
        use(number)
    held = os.open(tmp_path / names[1], os.O_RDONLY)
    use(2)
    assert tars(tmp_path) == sorted([names[0], names[2]])
    assert len(os.pread(held, sizes[1], 0)) == sizes[1]  # who has it open reads on
    os.close(held)


def test_what_a_killed_download_left_makes_room_but_a_running_one_does_not(
    server, packed, tmp_path
):
    shard = ShardIndex.load(packed).shards[0]
    shards = ShardCache(tmp_path, limit_gb=shard.bytes * 2.5 / 1e9)
    for name in ("dead", "alive"):
        with open(tmp_path / f"{name}.part", "wb") as file:
            file.truncate(shard.bytes)
    (tmp_path / "locks").mkdir()
    with open(tmp_path / "locks" / "alive.tar.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(shards.open(f"{server.url}/{shard.name}", shard.bytes, shard.sha256))
    assert {path.name for path in tmp_path.glob("*.part")} == {"alive.part"}


@pytest.mark.parametrize(
    "failure", [500, 429, "cut", "changed", "html", "gzip", "slow", "slow head"]
)
def test_a_broken_download_is_tried_again_and_never_kept(
    server, packed, tmp_path, failure, caplog, monkeypatch
):
    hurry(monkeypatch, failure)
    index = ShardIndex.load(server.url, ShardCache(tmp_path))
    server.failures = [failure, failure]
    assert index.read(0) == ShardIndex.load(packed).read(0)
    assert "attempt 2 of 4" in caplog.text
    other = ShardIndex.load(server.url, ShardCache(tmp_path / "other"))
    server.failures = [failure] * 4
    with pytest.raises(ValueError, match=r"shard-000000.tar: .*4 times"):
        other.read(0)
    assert not tars(tmp_path / "other")
    assert not list((tmp_path / "other").glob("*.part"))


INDEX_FAILURES = {
    "cut": r"\d+ bytes instead of \d+",
    "cut without a length": "not valid JSON",
    "html": "an HTML page, not the file",
    "gzip": "a compressed answer",
    "empty": "an empty answer",
    "part of an index": "damaged index",
    "no index": "schema None",
    "slow": r"too slow: \d+ bytes in",
    "slow head": "the connection failed",
    503: "503",
}


@pytest.mark.parametrize("failure", INDEX_FAILURES)
def test_an_index_that_comes_damaged_is_fetched_again(
    server, packed, tmp_path, failure, caplog, monkeypatch
):
    hurry(monkeypatch, failure)
    server.failures = [failure] * 3
    index = ShardIndex.load(server.url, ShardCache(tmp_path))
    assert list(index.entries) == list(ShardIndex.load(packed).entries)
    assert "attempt 3 of 4" in caplog.text
    server.failures = [failure] * 4
    message = rf"^{server.url}/index.json: .*{INDEX_FAILURES[failure]}.*4 times\. Check the address"
    with pytest.raises(ValueError, match=message) as error:
        ShardIndex.load(server.url, ShardCache(tmp_path / "other"))
    assert "elete" not in str(error.value)
    assert not list((tmp_path / "other").rglob("*index*"))
    assert len(server.requests) == 8


@pytest.mark.parametrize("failure", [*INDEX_FAILURES, "down"])
def test_a_full_cache_goes_on_without_the_index_server(
    server, packed, tmp_path, failure, caplog, monkeypatch
):
    hurry(monkeypatch, failure)
    first = ShardIndex.load(server.url, ShardCache(tmp_path))
    for i in range(6):
        first.read(i)
    server.failures = [failure] * 4
    if failure == "down":
        server.shutdown()
        server.server_close()
    again = ShardIndex.load(server.url, ShardCache(tmp_path))
    assert f"{server.url}/index.json: " in caplog.text
    assert "Going on with the copy of an earlier run" in caplog.text
    assert again.read(4) == ShardIndex.load(packed).read(4)


def test_an_index_that_is_gone_or_forbidden_is_not_replaced_by_a_copy(server, tmp_path):
    ShardIndex.load(server.url, ShardCache(tmp_path))
    server.failures = [404]
    with pytest.raises(ValueError, match=r"index.json: 404"):
        ShardIndex.load(server.url, ShardCache(tmp_path))


def test_mistakes_are_refused_at_once(server, packed, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/index.json: 404"):
        ShardIndex.load(server.url + "/nowhere", ShardCache(tmp_path))
    assert len(server.requests) == 1
    with pytest.raises(ValueError, match=r"abc://x/index.json: Protocol not known"):
        ShardIndex.load("abc://x", ShardCache(tmp_path))
    with pytest.raises(ValueError, match=r"s3://bucket/index.json: .*\(Install s3fs"):
        ShardIndex.load("s3://bucket", ShardCache(tmp_path))
    with pytest.raises(ValueError, match="cannot be read"):
        ShardIndex.load("file:///nowhere", ShardCache(tmp_path))
    with pytest.raises(ValueError, match="more than the whole shard cache"):
        ShardIndex.load(server.url, ShardCache(tmp_path, limit_gb=1e-6)).read(0)
    with pytest.raises(ValueError, match="cache_gb=0 must be above 0"):
        ClipConfig(folder="x", cache_gb=0)


def test_a_server_that_is_down_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/index.json: .*failed"):
        ShardIndex.load("http://127.0.0.1:9", ShardCache(tmp_path))


def test_other_storage_is_read_through_fsspec(packed, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(packed), "/set", recursive=True)
    for url in (f"file://{packed}", "memory://set"):
        index = ShardIndex.load(url, ShardCache(tmp_path / url[:4]))
        assert index.read(3) == ShardIndex.load(packed).read(3)


def test_a_local_index_may_point_to_remote_shards(server, packed, tmp_path, monkeypatch):
    entries = json.loads((packed / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**entries, "location": server.url}))
    index = ShardIndex.load(tmp_path, ShardCache(tmp_path / "cache"))
    local = ShardIndex.load(packed)
    assert all(index.read(i) == local.read(i) for i in range(len(local)))
    assert len(tars(tmp_path / "cache")) == 3
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert not verify(tmp_path, progress=False).problems
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    entries["shards"][1]["sha256"] = "0" * 64
    (tmp_path / "index.json").write_text(json.dumps({**entries, "location": server.url}))
    with monkeypatch.context() as quick:
        quick.setattr("data.shards.remote_cache.ATTEMPTS", 1)
        problems = verify(tmp_path, decode="none", progress=False).problems
    assert [problem.file for problem in problems] == [f"{server.url}/{index.shards[1].name}"]
    assert "sha256" in problems[0].reason


def test_a_small_cache_for_a_shuffled_order_is_warned_about(server, tmp_path, caplog):
    config = ClipConfig(
        folder=server.url, frames=3, height=32, width=32, cache=str(tmp_path), cache_gb=1e-5
    )
    ClipDataset(config, seed=0)
    assert "the same shards are downloaded many times" in caplog.text


def test_few_files_are_open_at_once(packed, monkeypatch):
    monkeypatch.setattr("data.shards.index.OPEN_SHARDS", 2)
    index = ShardIndex.load(packed)
    before = len(os.listdir("/proc/self/fd"))
    for i in (0, 2, 4, 0, 5):
        index.read(i)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del index
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_default_folder_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv(data.shards.remote_cache.CACHE_VARIABLE, str(tmp_path))
    assert ShardCache().folder == tmp_path
