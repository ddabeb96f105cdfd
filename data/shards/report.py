"""What became of the videos that were to be packed: of each shard, and of all; and for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Literal, Self

from common.files import printable, read_json, sha256_file
from data.importers import ImportResult
from data.shards.index import Shard
from data.shards.tars import Entry

REPORT = "report.json"
SHOWN = 5
"""Names shown of each list; the file has all."""


@dataclass(frozen=True)
class Failure:
    """A video that cannot be packed."""

    id: str
    reason: str
    """Names the file."""
    cause: Literal["file", "time limit", "crash"] = "file"
    """What is in the file; that reading takes too long; that a process died of it."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Those that it depends on; other ones are a reason to try again."""
    file: str = ""
    """Hash of the record with its files' sizes and times: a mended file has another one."""


@dataclass(frozen=True)
class ShortVideo:
    """A video with too few frames."""

    id: str
    path: str
    frames: int


@dataclass(frozen=True)
class UnusualVideo:
    """A packed video that is unusual, such as by a variable frame rate."""

    id: str
    path: str
    notes: Sequence[str]


@dataclass(kw_only=True)
class PackedShard:
    """Records `[start, stop)` and what became of them; kept as json beside each tar."""

    shard: Shard | None = None
    """The tar; None where none of the records could be packed."""
    start: int
    stop: int
    records: str = ""
    """Hash of the records without those that failed, and of their files' sizes."""
    entries: list[Entry] = field(default_factory=list)
    psnr: list[float | None] = field(default_factory=list)
    """Of each entry, dB."""
    too_short: list[ShortVideo] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unusual: list[UnusualVideo] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """From the json.

        Raises:
            ValueError: it is damaged.
        """
        try:
            values = read_json(path)
            values |= {
                "shard": values["shard"] and Shard(**values["shard"]),
                "entries": [Entry.from_json(entry) for entry in values["entries"]],
                "too_short": [ShortVideo(**video) for video in values["too_short"]],
                "failures": [Failure(**failure) for failure in values["failures"]],
                "unusual": [UnusualVideo(**video) for video in values["unusual"]],
            }
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}). Delete it and pack again.") from None

    def __len__(self) -> int:
        return self.stop - self.start

    def is_intact(self, folder: Path) -> bool:
        """Whether its tar, if it has one, is in `folder` with the recorded sha256."""
        if self.shard is None:
            return True
        tar = folder / self.shard.name
        return tar.exists() and sha256_file(tar) == self.shard.sha256

    @property
    def ids(self) -> set[str]:
        """Of its records."""
        others = (*self.too_short, *self.failures)
        return {entry.key for entry in self.entries} | {video.id for video in others}


@dataclass(frozen=True)
class ShardReport:
    """What became of the videos; also written as `report.json`."""

    found: int
    """Records given."""
    written: int
    """Videos in the shards."""
    hours: float
    """Length of the videos written, in hours."""
    bytes: int
    """Size of all shards."""
    source_bytes: int
    """Size of all files that the records are read from."""
    psnr: float | None
    """Mean over the videos of packed against decoded and resized frames, dB, of at most 16 frames
    of each; None where files are stored as they are."""
    psnr_lowest: float | None
    """Of the video with the lowest."""
    shards: int
    """Number of shards."""
    hash: str
    """Content hash, as in the index."""
    classes: Mapping[str, int]
    """Videos written, by class; empty without classes."""
    too_short: tuple[ShortVideo, ...]
    """Videos left out because they have too few frames."""
    failures: tuple[Failure, ...]
    """Videos left out because they cannot be packed."""
    missing: Sequence[str]
    """Videos that the annotations name and no file is there for."""
    unlabeled: Sequence[str]
    """Files that the annotations do not name."""
    notes: Sequence[str]
    """What the importer found unusual and how it read it, and several frame rates in one set."""
    unusual: tuple[UnusualVideo, ...]
    """Packed videos that are unusual."""

    def lines(self, folder: Path, scan: ImportResult) -> list[str]:
        """For people: counts, sizes, and the first names of each list."""
        quality = ""
        if self.psnr is not None:
            quality = f"; PSNR {self.psnr:.1f} dB (lowest {self.psnr_lowest:.1f})"
        return [
            f"{folder}: {self.written} of {self.found} videos written ({self.hours:.2f} hours); "
            f"{len(self.too_short)} too short, {len(self.failures)} failed, "
            f"{len(self.missing)} missing, {len(self.unlabeled)} unlabeled",
            f"  {self.source_bytes / 1e6:.1f} MB became {self.bytes / 1e6:.1f} MB in "
            f"{self.shards} shards{quality}",
            *list_names("too short", [f"{v.path}: {v.frames} frames" for v in self.too_short]),
            *list_names("failed", [video.reason for video in self.failures]),
            *list_names("unusual", [f"{v.path}: {'; '.join(v.notes)}" for v in self.unusual]),
            *(f"  note: {note}" for note in self.notes[len(scan.notes) :]),
            *list_counts(self.classes),
            f"Report: {folder / REPORT}",
        ]


@dataclass(frozen=True)
class ExternalReport:
    """What became of the samples of tars that other tools wrote."""

    shards: int
    """Tars."""
    found: int
    """Samples in them."""
    written: int
    """Videos in the index."""
    unlabeled: int
    """Videos of these without a class."""
    without_video: tuple[str, ...]
    """Keys of samples that hold no video."""
    failures: tuple[Failure, ...]
    """Videos that cannot be decoded."""
    cut: tuple[str, ...]
    """Tars without the zeros that end one: cut between members, or so written."""
    unchecked: int
    """Videos in the index of which only the first frame was decoded."""
    hash: str
    """Content hash, as in the index."""


def make_report(
    scan: ImportResult, packed: Sequence[PackedShard], content_hash: str, source_bytes: int
) -> ShardReport:
    """Sum up all shards; together they cover all records of the scan, in order."""
    entries = [entry for each in packed for entry in each.entries]
    psnr = [value for each in packed for value in each.psnr if value is not None]
    shards = [each.shard for each in packed if each.shard is not None]
    counts = Counter(entry.label for entry in entries)
    notes, rates = list(scan.notes), Counter(f"{entry.fps:.4g}" for entry in entries)
    if len(rates) > 1:
        usual = ", ".join(f"{rate} ({count} videos)" for rate, count in rates.most_common(5))
        more = f" and {len(rates) - 5} more" if len(rates) > 5 else ""
        notes.append(f"{len(rates)} frame rates in one set: {usual}{more}; fps packs all at one")
    return ShardReport(
        found=len(scan.records),
        written=len(entries),
        hours=sum(entry.frames / entry.fps for entry in entries) / 3600,
        bytes=sum(shard.bytes for shard in shards),
        source_bytes=source_bytes,
        psnr=mean(psnr) if psnr else None,
        psnr_lowest=min(psnr, default=None),
        shards=len(shards),
        hash=content_hash,
        classes={name: counts[label] for label, name in enumerate(scan.class_names)},
        too_short=tuple(video for each in packed for video in each.too_short),
        failures=tuple(failure for each in packed for failure in each.failures),
        missing=scan.missing,
        unlabeled=scan.unlabeled,
        notes=notes,
        unusual=tuple(video for each in packed for video in each.unusual),
    )


def scan_lines(root: Path, scan: ImportResult) -> list[str]:
    """What a scan found, for people."""
    return [
        f"{printable(root)}: {len(scan.records)} videos, {len(scan.class_names)} classes",
        *(f"  note: {note}" for note in scan.notes),
        *list_names("annotated but not there", scan.missing),
        *list_names("there but not annotated", scan.unlabeled),
    ]


def list_names(what: str, names: Sequence[str]) -> list[str]:
    """The first names of a list."""
    if not names:
        return []
    lines = [f"  {what}: {len(names)}", *(f"    {name}" for name in names[:SHOWN])]
    return lines + [f"    and {len(names) - SHOWN} more"] * (len(names) > SHOWN)


def list_counts(classes: Mapping[str, int]) -> list[str]:
    """How many videos each class has, in a column."""
    width = max(map(len, classes), default=0)
    return [f"  {name:<{width}} {count}" for name, count in classes.items()]
