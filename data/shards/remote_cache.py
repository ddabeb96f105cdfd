"""Shards that live elsewhere, cached whole on local disk: shared by processes, bounded in size.

`https://...` is read by Python itself; every other address (`s3://`, `hf://`, `gs://`, `file://`)
by fsspec, with the package that it needs for that place.
"""

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock, Timeout

from common.files import sha256_file

log = logging.getLogger(__name__)

CACHE_VARIABLE = "IVVAE_SHARD_CACHE"
ATTEMPTS = 4
TIMEOUT = 60.0  # seconds without a byte


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
        wait: seconds before the second attempt of a download that failed; doubled at each.

    Raises:
        ValueError: a limit that is not above 0.
    """

    def __init__(
        self, folder: str | Path | None = None, limit_gb: float = 100.0, *, wait: float = 1.0
    ):
        if not limit_gb > 0:
            raise ValueError(f"cache_gb={limit_gb} must be above 0")
        default = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "ivvae" / "shards"
        self.folder = Path(folder or default)
        self.limit = int(limit_gb * 1e9)
        self.wait = wait

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

    def refresh(self, url: str) -> Path:
        """Download a small file, such as an index, anew; returns where it is.

        Raises:
            ValueError: it cannot be downloaded.
        """
        path = self.folder / "indices" / sha256(url.encode()).hexdigest() / url.rsplit("/", 1)[-1]
        with self._locked(path):
            part = path.with_name(path.name + ".part")
            self._attempts(url, part)
            if not path.exists() or sha256_file(path) != sha256_file(part):
                os.replace(part, path)
            part.unlink(missing_ok=True)
        return path

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
                self._attempts(url, part, size, digest)
                with self._locked(self.folder / "room"):
                    os.replace(part, path)
            return os.open(path, os.O_RDONLY)

    def _attempts(self, url: str, part: Path, size: int | None = None, digest: str = "") -> None:
        """Download to `part` and check it, several times if need be."""
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                _download(url, part)
                _check(part, size, digest)
                return
            except _Broken as error:
                log.warning("%s: %s (attempt %d of %d)", url, error, attempt + 1, ATTEMPTS)
                reason = str(error)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        part.unlink(missing_ok=True)
        raise ValueError(
            f"{url}: {reason}, {ATTEMPTS} times. Check the address and the connection; if the data "
            "were changed, their index must be made again."
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


def _download(url: str, target: Path) -> None:
    target.touch()
    with open(target, "r+b") as file:  # keeps the room that was reserved
        for block in _blocks(url):
            file.write(block)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _blocks(url: str) -> Iterator[bytes]:
    """The bytes at `url`.

    Raises:
        ValueError: nothing there, no permission, or an unknown or missing kind of storage.
        _Broken: anything that may pass.
    """
    try:
        with _opened(url) as source:
            while block := source.read(1 << 20):
                yield block
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
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    try:
        return fsspec.open(url, "rb")  # type: ignore[return-value]
    except ValueError as error:
        raise ValueError(f"{url}: {error}. Give http(s)://, s3://, hf:// or the like.") from None


def _check(path: Path, size: int | None, digest: str) -> None:
    found = path.stat().st_size
    if size is not None and found != size:
        raise _Broken(f"{found} bytes instead of {size}")
    if digest and sha256_file(path) != digest:
        raise _Broken("its sha256 is not the one in the index")
