"""Shards that live elsewhere, cached whole on local disk: shared by processes, bounded in size.

`https://...` is read by Python itself; every other address (`s3://`, `hf://`, `gs://`, `file://`)
by fsspec, with the package that it needs for that place.
"""

import http.client
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from filelock import FileLock, Timeout

from common.files import sha256_file

log = logging.getLogger(__name__)

CACHE_VARIABLE = "IVVAE_SHARD_CACHE"
ATTEMPTS = 4
WAIT = 1.0  # seconds before the second attempt; doubled at each
TIMEOUT = 60.0  # seconds without a byte
SLOWEST = 10_000  # bytes per second, on average from the start of a download
GRACE = 120.0  # seconds that a download may take beside these
LARGEST = 4_000_000_000  # bytes of an index

Content = TypeVar("Content")


def is_remote(source: str | Path) -> bool:
    """Whether `source` is an address such as `https://...` or `s3://...`, not a path."""
    return "://" in str(source)


class ShardCache:
    """A folder of downloaded shards, named by their sha256.

    Any number of processes may use one folder: each shard is downloaded by one of them while the
    others wait, appears under its name when it is complete and its checksum right, and the least
    recently opened ones make room for new ones. A shard that is removed while it is being read
    stays readable until it is closed.

    Args:
        folder: made if missing; default: `IVVAE_SHARD_CACHE`, else `~/.cache/ivvae/shards`.
        limit_gb: size that the folder is kept below, in GB (10^9 bytes).

    Raises:
        ValueError: a limit that is not above 0.
    """

    def __init__(self, folder: str | Path | None = None, limit_gb: float = 100.0):
        if not limit_gb > 0:
            raise ValueError(f"cache_gb={limit_gb} must be above 0")
        default = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "ivvae" / "shards"
        self.folder = Path(folder or default)
        self.limit = int(limit_gb * 1e9)

    def open(self, url: str, size: int, digest: str) -> int:
        """A descriptor of the shard at `url`, for reading; downloaded first if it is not here.

        Raises:
            ValueError: it cannot be downloaded, is larger than the limit, or its `size` (bytes) or
                sha256 `digest` is not the one that the index gives.
        """
        path = self.folder / f"{digest}.tar"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return self._fetch(url, path, size, digest)
        os.utime(descriptor)
        return descriptor

    def refresh(self, url: str, read: Callable[[Path], Content]) -> Content:
        """Download a small file, such as an index, anew; returns what `read` makes of it.

        A copy is kept. Where the download fails in a way that may pass, the copy of an earlier run
        is read instead, and a warning says so.

        Args:
            read: reads the file; where it raises `ValueError`, the download was a broken one.

        Raises:
            ValueError: nothing is there, or it cannot be downloaded and there is no copy.
        """
        path = self.folder / "indices" / sha256(url.encode()).hexdigest() / url.rsplit("/", 1)[-1]

        def keep(part: Path) -> Content:
            content = read(part)
            os.replace(part, path)
            return content

        with self._locked(path):
            try:
                return self._attempts(url, path.with_name(f"part.{path.name}"), keep, LARGEST)
            except _BrokenError as error:
                if not path.exists():
                    raise
                log.warning("%s Going on with the copy of an earlier run, %s.", error, path)
                return read(path)

    def _fetch(self, url: str, path: Path, size: int, digest: str) -> int:
        if size > self.limit:
            raise ValueError(
                f"{url}: {size / 1e9:.3g} GB, more than the whole shard cache may hold "
                f"({self.limit / 1e9:.3g} GB). Raise cache_gb."
            )
        with self._locked(path):
            if not path.exists():  # another process may have been faster
                part = path.with_suffix(".part")
                self._reserve(part, size)
                self._attempts(url, part, lambda part: _check(part, size, digest), size)
                with self._locked(self.folder / "room"):
                    os.replace(part, path)
            return os.open(path, os.O_RDONLY)

    def _attempts(
        self, url: str, part: Path, read: Callable[[Path], Content], limit: int
    ) -> Content:
        """Download to `part` and read it, several times if need be."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            try:
                looks = _download(url, part, limit)
                try:
                    return read(part)
                except ValueError as error:
                    raise _Broken(f"{looks}: {error}" if looks else str(error)) from None
            except _Broken as error:
                log.warning("%s: %s (attempt %d of %d)", url, error, attempt + 1, ATTEMPTS)
                reason = str(error)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        part.unlink(missing_ok=True)
        raise _BrokenError(
            f"{url}: {reason.removesuffix('.')}, {ATTEMPTS} times. Check the address and the "
            "connection; if the data were changed, their index must be made again."
        )

    def _reserve(self, part: Path, size: int) -> None:
        """Make room, and take it with a sparse file, so that others who make room count it."""
        part.unlink(missing_ok=True)  # left by a download that was killed
        while not self._take(part, size):
            time.sleep(0.05)  # others are downloading; they hold all the room there is

    def _take(self, part: Path, size: int) -> bool:
        with self._locked(self.folder / "room"):
            sizes = self._sizes()
            total = sum(sizes.values())
            for file, bytes_there in sizes.items():
                if total + size > self.limit and self._evict(file):
                    total -= bytes_there
            if total + size > self.limit:
                return False
            with open(part, "wb") as reserved:
                reserved.truncate(size)
            return True

    def _evict(self, file: Path) -> bool:
        """Remove a shard, or what a killed download left; not one being downloaded or opened."""
        try:
            with self._locked(file.with_suffix(".tar"), blocking=False):
                file.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _sizes(self) -> dict[Path, int]:
        """Bytes of every shard and every unfinished download, the least recently used first."""
        found: dict[Path, os.stat_result] = {}
        for file in (*self.folder.glob("*.tar"), *self.folder.glob("*.part")):
            with suppress(FileNotFoundError):  # a download that has just failed
                found[file] = file.stat()
        return {
            file: found[file].st_size for file in sorted(found, key=lambda f: found[f].st_mtime_ns)
        }

    @contextmanager
    def _locked(self, path: Path, *, blocking: bool = True) -> Iterator[None]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name if path.parent == self.folder else path.parent.name
        with FileLock(locks / f"{name}.lock", blocking=blocking):
            yield


class _Broken(Exception):
    """A download that failed in a way that another attempt may mend."""


class _BrokenError(ValueError):
    """A download of which all attempts failed so."""


def _download(url: str, target: Path, limit: int) -> str:
    """Write what is at `url` to `target`; returns what it looks like, if like no file of ours."""
    start = time.monotonic()
    target.touch()
    with open(target, "r+b") as file:  # keeps the room that was reserved
        for block in _blocks(url):
            file.write(block)
            seconds = time.monotonic() - start
            if seconds > GRACE + file.tell() / SLOWEST:
                raise _Broken(f"too slow: {file.tell()} bytes in {seconds:.3g} s")
            if file.tell() > limit:
                raise _Broken(f"more than {limit} bytes")
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        head = file.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "an HTML page, not the file"
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"bzh", b"\xfd7zxz")):
        return "a compressed answer, not the file itself"
    return "" if head else "an empty answer"


def _blocks(url: str) -> Iterator[bytes]:
    """The bytes at `url`.

    Raises:
        ValueError: nothing there, no permission, or an unknown or missing kind of storage.
        _Broken: anything that may pass.
    """
    try:
        with _opened(url) as source:
            length = getattr(source, "headers", {}).get("Content-Length")
            received = 0
            read = getattr(source, "read1", source.read)  # what has come, without waiting for more
            while block := read(1 << 20):
                received += len(block)
                yield block
            if length is not None and received != int(length):
                raise _Broken(f"{received} bytes instead of {length}")
    except urllib.error.HTTPError as error:
        reason = f"{error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise _Broken(reason) from None
        raise ValueError(f"{url}: {reason}. Check the address.") from None
    except (ImportError, FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{url}: cannot be read ({error}). Check the address.") from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts among them
        raise _Broken(f"the connection failed ({error})") from None


def _opened(url: str) -> AbstractContextManager[Any]:
    if url.startswith(("http://", "https://")):
        return urllib.request.build_opener(_HTTPHandler, _HTTPSHandler).open(url, timeout=TIMEOUT)
    try:
        return fsspec.open(url, "rb")  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"{url}: {error}. Give http(s)://, s3://, hf:// or the like.") from None


class _Connection(http.client.HTTPConnection):
    """Closes itself where the head of an answer takes too long, however steadily it comes."""

    def getresponse(self) -> http.client.HTTPResponse:
        end = time.monotonic() + GRACE
        timer = threading.Timer(GRACE, self.sock.shutdown, [socket.SHUT_RDWR])
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        if time.monotonic() > end:  # then the head may be cut short without an error
            raise TimeoutError("timed out")
        return response


class _TLSConnection(_Connection, http.client.HTTPSConnection):
    """The same for https."""


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_TLSConnection, req)


def _check(path: Path, size: int, digest: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{found} bytes instead of {size}")
    if sha256_file(path) != digest:
        raise ValueError("its sha256 is not the one in the index")
