"""Write shards of videos: parallel, distributed, resumable, the same bytes every time.

    write_shards(records, "shards/", ShardConfig(short_side=256), class_names, workers=8)
    index = ShardIndex.load("shards/")

The records are divided into parts of equal length, in order. A part becomes a shard, or several
where one would grow too large; beside each a small json lists its samples, its sha256 and the
records it covers. Each process writes the parts that are its own. A run that was stopped goes on,
when started again, after the shards whose json matches their bytes; how many processes it has does
not matter. The first process writes `index.json` last.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from common.files import atomic_path, read_json, sha256_file, write_json
from common.output_folder import lock_folder
from data.importers import ImportResult
from data.shards.identity import agree, check_records, claim, identify
from data.shards.index import Sample, Shard, ShardIndex, write_index
from data.shards.pack_video import Failed, Packed, ShardConfig, TarWriter, member_json, pack_record
from data.shards.report import ShardReport, make_report
from data.shards.workers import Packer
from data.video.decode import TIME_LIMIT
from data.video.decode_errors import printable
from data.video.video_record import VideoRecord

if TYPE_CHECKING:  # takes seconds to import, and whoever has an Accelerator has imported it
    from accelerate import Accelerator

__all__ = ["Sample", "Shard", "ShardConfig", "ShardIndex", "ShardReport", "write_shards"]

REPORT = "report.json"


def write_shards(
    records: Sequence[VideoRecord],
    folder: str | Path,
    config: ShardConfig,
    class_names: Sequence[str] = (),
    *,
    bad: Literal["stop", "skip"] = "stop",
    workers: int = 0,
    time_limit: float = TIME_LIMIT,
    progress: bool = True,
    scan: ImportResult | None = None,
    accelerator: "Accelerator | None" = None,
) -> ShardReport:
    """Pack `records` into webdataset tars under `folder`, with an index and a report.

    Running it again with the same arguments continues, or does nothing but check.

    Args:
        records: what to pack; the order is that of the samples.
        config: what the samples look like.
        class_names: names of the labels.
        bad: what to do with a video that cannot be decoded: end here, or leave it out and count it.
        workers: processes that decode and encode; 0 does it in this one.
        time_limit: seconds that reading one video may take; a slower one is bad.
        progress: show a bar.
        scan: where the records come from, for the report.
        accelerator: where several processes call this with the same arguments and share `folder`:
            what connects them. The shards do not depend on their number.

    Raises:
        ValueError: records that contradict each other, a folder of shards made from other videos
            or in another way, a folder that another run is writing to, a bad video under
            `bad="stop"`, or nothing to write.
    """
    folder = Path(folder)
    rank, processes, wait = 0, 1, _nobody
    if accelerator is not None:
        rank, processes = accelerator.process_index, accelerator.num_processes
        wait = accelerator.wait_for_everyone
    check_records(records, config, class_names)
    identity, source_bytes = identify(records, config, class_names)
    with lock_folder(folder, accelerator):
        if rank == 0:
            claim(folder, identity)
        wait()
        agree(folder, identity)
        parts = _divide(len(records), config.samples_per_shard)
        own = parts[rank::processes]
        writer = _Writer(folder, records, config, class_names, bad)
        writer.run(own, workers, time_limit, progress and rank == 0)
        wait()
        if rank == 0:
            shards = list(_covered(folder, parts))
            content_hash = _index(folder, shards, config, class_names)
            report = make_report(shards, class_names, content_hash, source_bytes, scan)
            write_json(folder / REPORT, asdict(report))
        wait()
    return ShardReport(**read_json(folder / REPORT))


def _nobody() -> None:
    """Wait for nobody: there is only this process."""


@dataclass(frozen=True)
class _Part:
    """Records `[start, stop)`, which one process turns into one shard or more."""

    number: int
    start: int
    stop: int

    def name(self, shard: int) -> str:
        """File name of a shard of this part, without its extension."""
        return f"shard-{self.number:06d}" + (f"-{shard}" if shard else "")


def _divide(records: int, length: int) -> list[_Part]:
    starts = range(0, records, length)
    return [_Part(i, start, min(start + length, records)) for i, start in enumerate(starts)]


@dataclass
class _Writer:
    """Turns parts of the records into shards, each with the json that says what it covers."""

    folder: Path
    records: Sequence[VideoRecord]
    config: ShardConfig
    class_names: Sequence[str]
    bad: str

    def run(self, parts: Sequence[_Part], workers: int, time_limit: float, progress: bool) -> None:
        """Write what is missing of `parts`."""
        todo = [(part, *self._written(part)) for part in parts]  # part, shards, next record
        numbers = [number for part, _, at in todo for number in range(at, part.stop)]
        total = sum(part.stop - part.start for part in parts)
        self.bar = tqdm(
            total=total,
            initial=total - len(numbers),
            unit="video",
            desc="" if total == len(self.records) else "videos of the first process",
            disable=not progress,
        )
        workers = min(workers, len(numbers))
        packer = Packer(
            pack_record, self.records, numbers, self.config, workers=workers, time_limit=time_limit
        )
        with self.bar, packer:
            for part, shards, position in todo:
                while position < part.stop:
                    entry = self._write(part, shards, position, packer)
                    shards, position = shards + 1, entry["stop"]

    def _written(self, part: _Part) -> tuple[int, int]:
        """How many of a part's shards are there and undamaged, and the record after them."""
        shards, position = 0, part.start
        for entry in _entries(self.folder, part):
            if not _is_intact(self.folder, entry["shard"]):
                break
            for failure in entry["failures"]:
                self._object_to(failure["reason"])
            shards, position = shards + 1, entry["stop"]
        return shards, position

    def _write(self, part: _Part, shards: int, start: int, packer: Packer) -> dict[str, Any]:
        name = part.name(shards)
        tar = self.folder / f"{name}.tar"
        try:
            with atomic_path(tar) as temporary, open(temporary, "wb") as file:
                entry = self._fill(TarWriter(file), tar.name, range(start, part.stop), packer)
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(tar)) from error
        if entry["shard"] is None:
            tar.unlink()
        write_json(self.folder / f"{name}.json", entry)
        return entry

    def _fill(self, tar: TarWriter, name: str, numbers: range, packer: Packer) -> dict[str, Any]:
        """Add the records with these numbers until the shard is full or they end."""
        samples, psnr, too_short, failures, notes = [], [], [], [], []
        stop = numbers.start
        for number in numbers:
            record, packed = self.records[number], packer.get(number)
            if isinstance(packed, Failed):
                self._object_to(packed.reason)
                failures.append({"id": record.id, "reason": packed.reason})
            elif not packed.video:
                too_short.append(
                    {"id": record.id, "path": printable(record.path), "frames": packed.frames}
                )
            elif samples and tar.size + len(packed.video) > self.config.shard_mb * 1_000_000:
                break
            else:
                samples.append(self._add(tar, record, packed))
                psnr.append(packed.psnr)
                if packed.notes:
                    path = printable(record.path)
                    notes.append({"id": record.id, "path": path, "notes": packed.notes})
            stop = number + 1
            self.bar.update()
        shard = Shard(name, tar.close(), tar.size, len(samples))
        return {
            "shard": _facts(shard) if samples else None,
            "start": numbers.start,
            "stop": stop,
            "samples": samples,
            "psnr": psnr,
            "too_short": too_short,
            "failures": failures,
            "notes": notes,
        }

    def _add(self, tar: TarWriter, record: VideoRecord, packed: Packed) -> dict[str, Any]:
        class_name = None if record.label is None else self.class_names[record.label]
        video = tar.add(f"{record.id}.{packed.extension}", packed.video)
        facts = tar.add(f"{record.id}.json", member_json(record, packed, class_name))
        return {
            "key": record.id,
            "label": record.label,
            "frames": packed.frames,
            "height": packed.height,
            "width": packed.width,
            "fps": packed.fps,
            "members": {packed.extension: video, "json": facts},
        }

    def _object_to(self, reason: str) -> None:
        if self.bad == "stop":
            raise ValueError(
                f"{reason}. Mend or remove it, or leave out such videos with bad=skip."
            )


def _entries(folder: Path, part: _Part) -> Iterator[dict[str, Any]]:
    """What the jsons of a part's shards say, up to the first that is missing or does not fit."""
    shards, position = 0, part.start
    while position < part.stop:
        path = folder / f"{part.name(shards)}.json"
        entry = read_json(path) if path.exists() else None
        if entry is None or entry["start"] != position or not position < entry["stop"] <= part.stop:
            return
        yield entry
        shards, position = shards + 1, entry["stop"]


def _is_intact(folder: Path, shard: Mapping[str, Any] | None) -> bool:
    if shard is None:
        return True
    tar = folder / shard["name"]
    return tar.exists() and sha256_file(tar) == shard["sha256"]


def _facts(shard: Shard) -> dict[str, Any]:
    return {name: value for name, value in asdict(shard).items() if value is not None}


def _covered(folder: Path, parts: Sequence[_Part]) -> Iterator[dict[str, Any]]:
    """What the jsons of all shards say; together they cover all records."""
    for part in parts:
        found = list(_entries(folder, part))
        if not found or found[-1]["stop"] != part.stop:
            raise ValueError(
                f"{folder}: {part.name(len(found))}.json is not there, though a process wrote it. "
                "All processes must see the same folder."
            )
        yield from found


def _index(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    config: ShardConfig,
    class_names: Sequence[str],
) -> str:
    """Write the index of the shards that are not empty; returns its content hash."""
    full = [entry for entry in entries if entry["samples"]]
    if not full:
        failures = [failure["reason"] for entry in entries for failure in entry["failures"]]
        reason = failures[0] if failures else f"all have fewer than {config.min_frames} frames"
        raise ValueError(
            f"{folder}: none of {entries[-1]['stop']} videos could be packed: {reason}"
        )
    samples = [
        {**sample, "shard": number}
        for number, entry in enumerate(full)
        for sample in entry["samples"]
    ]
    shards = [entry["shard"] for entry in full]
    return write_index(folder, class_names, asdict(config), shards, samples)
