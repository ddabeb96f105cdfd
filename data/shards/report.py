"""What became of the videos that were to be packed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from data.importers import ImportResult


@dataclass(frozen=True)
class ShardReport:
    """What became of the videos; also written as `report.json`."""

    found: int
    """Records given."""
    written: int
    """Videos in the shards."""
    short: int
    """Left out because they have too few frames."""
    bad: int
    """Left out because they cannot be decoded."""
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
    too_short: Sequence[Mapping[str, Any]]
    """Id, file and frames of each video that was too short."""
    failures: Sequence[Mapping[str, Any]]
    """Id and reason, which names the file, of each video that cannot be decoded."""
    missing: Sequence[str] = ()
    """Videos that the annotations name and no file is there for."""
    unlabeled: Sequence[str] = ()
    """Files that the annotations do not name."""
    notes: Sequence[str] = ()
    """What the importer found unusual and how it read it, and several frame rates in one set."""
    unusual: Sequence[Mapping[str, Any]] = ()
    """Id, file and notes of each packed video that is unusual, such as by a variable frame rate."""


def make_report(
    entries: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    content_hash: str,
    source_bytes: int,
    scan: ImportResult | None,
) -> ShardReport:
    """Sum up what the jsons of all shards say; `entries` cover all records, in order."""
    scan = scan or ImportResult([])
    samples = [sample for entry in entries for sample in entry["samples"]]
    psnr = [value for entry in entries for value in entry["psnr"] if value is not None]
    shards = [entry["shard"] for entry in entries if entry["shard"] is not None]
    failures = [failure for entry in entries for failure in entry["failures"]]
    too_short = [video for entry in entries for video in entry["too_short"]]
    counts = Counter(sample["label"] for sample in samples)
    notes, rates = list(scan.notes), Counter(f"{sample['fps']:.4g}" for sample in samples)
    if len(rates) > 1:
        usual = ", ".join(f"{rate} ({count} videos)" for rate, count in rates.most_common(5))
        more = f" and {len(rates) - 5} more" if len(rates) > 5 else ""
        notes.append(f"{len(rates)} frame rates in one set: {usual}{more}; fps packs all at one")
    return ShardReport(
        found=len(samples) + len(failures) + len(too_short),
        written=len(samples),
        short=len(too_short),
        bad=len(failures),
        hours=sum(sample["frames"] / sample["fps"] for sample in samples) / 3600,
        bytes=sum(shard["bytes"] for shard in shards),
        source_bytes=source_bytes,
        psnr=mean(psnr) if psnr else None,
        psnr_lowest=min(psnr, default=None),
        shards=len(shards),
        hash=content_hash,
        classes={name: counts[label] for label, name in enumerate(class_names)},
        too_short=too_short,
        failures=failures,
        missing=scan.missing,
        unlabeled=scan.unlabeled,
        notes=notes,
        unusual=[video for entry in entries for video in entry["notes"]],
    )
