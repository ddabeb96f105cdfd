"""Write shards of videos: parallel, distributed, resumable, the same bytes every time.

    write_shards(found, "shards/", ShardConfig(short_side=256), workers=8)
    index = ShardIndex.load("shards/")

The records are divided into parts of equal length, in order. A part becomes a shard, or several
where one would grow too large; beside each a json (`PackedShard`) tells what became of the records
it covers. Each process writes the parts that are its own. A run that was stopped goes on, when
started again, after the shards whose json matches their bytes and the records; how many processes
it has does not matter. The first process writes the index last.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from common.files import atomic_path, printable, write_json
from common.output_folder import check_identity, in_main_process, lock_folder
from common.pool import STUCK, map_ordered
from data.importers import ImportResult
from data.shards.index import Shard, write_index
from data.shards.pack_video import Packed, ShardConfig, member_json, pack_record
from data.shards.packing_run import HashedRecords, Part, begin_folder, check_records
from data.shards.report import (
    REPORT,
    Failure,
    PackedShard,
    ShardReport,
    ShortVideo,
    UnusualVideo,
    make_report,
)
from data.shards.tars import Entry, TarWriter
from data.video.container import TIME_LIMIT
from data.video.video_record import VideoRecord

if TYPE_CHECKING:  # takes seconds to import; a caller with an Accelerator has imported it
    from accelerate import Accelerator

GRACE = 60.0
"""Seconds beyond the time limit after which a process that is stuck in one frame is ended."""

OnError = Literal["stop", "skip"]


def write_shards(
    found: ImportResult,
    folder: str | Path,
    config: ShardConfig,
    *,
    on_error: OnError = "stop",
    workers: int = 0,
    time_limit: float = TIME_LIMIT,
    accelerator: "Accelerator | None" = None,
) -> ShardReport:
    """Pack videos into webdataset tars under `folder`, with an index and a report.

    Running it again with the same arguments continues, or does nothing but check. Videos that
    could not be packed are tried again if their file has changed, if the time limit that they broke
    is larger now, or if a process died of them and there are fewer workers now.

    Args:
        found: the records, in the order of the entries, and the names of their labels.
        config: what the packed videos look like.
        on_error: what to do with a video that cannot be packed: end here, or leave it out and
            count it.
        workers: processes that decode and encode; 0 does it in this one, where nothing can be done
            about a file of which the decoder crashes or never returns.
        time_limit: seconds that reading one video may take; a slower one cannot be packed.
        accelerator: where several processes call this with the same arguments and share `folder`:
            what connects them. The shards do not depend on their number.

    Raises:
        ValueError: records that contradict each other, a folder of shards made from other videos
            or in another way, a folder that another run is writing to, a video that cannot be
            packed under `on_error="stop"`, or nothing to write.
    """
    folder = Path(folder)
    rank, processes = 0, 1
    if accelerator is not None:
        rank, processes = accelerator.process_index, accelerator.num_processes
    check_records(found, config)
    hashed = HashedRecords.read(found.records)
    settings = {**asdict(config), "class_names": list(found.class_names)}
    with lock_folder(folder, accelerator):
        in_main_process(lambda: begin_folder(folder, settings, hashed), accelerator)
        check_identity(folder, settings, hashed.inputs)  # of each process
        count = len(found.records)
        parts = [
            Part(i, start, min(start + config.videos_per_shard, count))
            for i, start in enumerate(range(0, count, config.videos_per_shard))
        ]
        writer = _Writer(folder, found.class_names, hashed, config, on_error, workers, time_limit)
        writer.run(parts[rank::processes], hidden=rank > 0)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        return in_main_process(lambda: _conclude(folder, parts, config, found, hashed), accelerator)


@dataclass
class _Writer:
    """Turns parts of the records into shards, each with the json that says what it covers."""

    folder: Path
    class_names: Sequence[str]
    hashed: HashedRecords
    config: ShardConfig
    on_error: OnError
    workers: int
    time_limit: float

    def run(self, parts: Sequence[Part], *, hidden: bool) -> None:
        """Write what is missing of `parts`, with a bar unless `hidden`."""
        todo = [(part, *self._written(part)) for part in parts]  # part, shards, next record
        records = self.hashed.records
        waiting = [records[n] for part, _, position in todo for n in range(position, part.stop)]
        total = sum(part.stop - part.start for part in parts)
        self.bar = tqdm(
            total=total,
            initial=total - len(waiting),
            unit="video",
            desc="" if total == len(records) else "videos of the first process",
            disable=hidden,
        )
        self.results = map_ordered(
            partial(pack_record, config=self.config, time_limit=self.time_limit),
            waiting,
            self.workers,
            patience=self.time_limit + GRACE,
            on_death=self._died,
        )
        self.next: Packed | Failure | None = None
        try:
            with self.bar:
                for part, shards, position in todo:
                    while position < part.stop:
                        position = self._write(part.name(shards), range(position, part.stop)).stop
                        shards += 1
        finally:
            self.results.close()

    def _died(self, record: VideoRecord, status: int) -> Failure:
        path = printable(record.path)
        if status == STUCK:
            seconds = f"{self.time_limit + GRACE:g} s"
            return Failure(record.id, f"{path}: no frame for {seconds}; given up", "time limit")
        return Failure(
            record.id,
            f"{path}: a worker process died of it (exit status {status}): out of memory, or "
            "a file that makes the decoder crash. Try fewer workers",
            "crash",
        )

    def _written(self, part: Part) -> tuple[int, int]:
        """How many of a part's shards stay, and the record after them."""
        shards, position = 0, part.start
        for packed in part.packed(self.folder):
            numbers = {self.hashed.records[n].id: n for n in range(packed.start, packed.stop)}
            again = [f for f in packed.failures if self._may_succeed(f, numbers.get(f.id))]
            if again or not self.hashed.is_of(packed) or not packed.is_intact(self.folder):
                break
            for failure in packed.failures:
                self._stop_at(failure.reason)
            shards, position = shards + 1, packed.stop
        return shards, position

    def _may_succeed(self, failure: Failure, number: int | None) -> bool:
        """Whether the file or the settings are other ones than when it failed."""
        if number is None or failure.file != self.hashed.file_hash(number):
            return True
        longer = self.time_limit > failure.settings.get("time_limit", self.time_limit)
        return longer or self.workers < failure.settings.get("workers", self.workers)

    def _write(self, name: str, numbers: range) -> PackedShard:
        tar = self.folder / f"{name}.tar"
        try:
            with atomic_path(tar) as temporary, open(temporary, "wb") as file:
                packed = self._fill(TarWriter(file), tar.name, numbers)
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(tar)) from error
        if packed.shard is None:
            tar.unlink()
        write_json(self.folder / f"{name}.json", asdict(packed))
        return packed

    def _fill(self, tar: TarWriter, name: str, numbers: range) -> PackedShard:
        """Add the records with these numbers until the shard is full or they end."""
        packed = PackedShard(start=numbers.start, stop=numbers.start)
        for number in numbers:
            record = self.hashed.records[number]
            result = self.next = self.next or next(self.results)
            if isinstance(result, Failure):
                self._stop_at(result.reason)
                settings = {
                    "time limit": {"time_limit": self.time_limit},
                    "crash": {"workers": self.workers},
                }.get(result.cause, {})
                file = self.hashed.file_hash(number)
                packed.failures.append(replace(result, settings=settings, file=file))
            elif not result.video:
                short = ShortVideo(record.id, printable(record.path), result.frames)
                packed.too_short.append(short)
            elif packed.entries and tar.size + len(result.video) > self.config.shard_mb * 1_000_000:
                break
            else:
                packed.entries.append(self._add(tar, record, result))
                packed.psnr.append(result.psnr)
                if result.notes:
                    unusual = UnusualVideo(record.id, printable(record.path), result.notes)
                    packed.unusual.append(unusual)
            self.next, packed.stop = None, number + 1
            self.bar.update()
        if packed.entries:
            packed.shard = Shard(name, tar.close(), tar.size, len(packed.entries))
        packed.records = self.hashed.digest(range(numbers.start, packed.stop), packed.failures)
        return packed

    def _add(self, tar: TarWriter, record: VideoRecord, packed: Packed) -> Entry:
        class_name = None if record.label is None else self.class_names[record.label]
        video = tar.add(f"{record.id}.{packed.extension}", packed.video)
        facts = tar.add(f"{record.id}.json", member_json(record, packed, class_name))
        return Entry(
            key=record.id,
            label=record.label,
            frames=packed.frames,
            height=packed.height,
            width=packed.width,
            fps=packed.fps,
            members={packed.extension: video, "json": facts},
        )

    def _stop_at(self, reason: str) -> None:
        if self.on_error == "stop":
            raise ValueError(
                f"{reason}. Fix or remove it and run again, or leave out such videos "
                "with on_error=skip."
            )


def _conclude(
    folder: Path,
    parts: Sequence[Part],
    config: ShardConfig,
    found: ImportResult,
    hashed: HashedRecords,
) -> ShardReport:
    """Write the index of the shards that are not empty, and the report."""
    # Collect what was packed
    packed: list[PackedShard] = []
    names = set()
    for part in parts:
        done = list(part.packed(folder))
        if not done or done[-1].stop != part.stop:
            raise ValueError(
                f"{folder}: {part.name(len(done))}.json is not there, though a process wrote it. "
                "All processes must see the same folder."
            )
        packed += done
        names |= {part.name(shard) for shard in range(len(done))}
    full = [each for each in packed if each.shard is not None]
    if not full:
        failures = [failure.reason for each in packed for failure in each.failures]
        reason = failures[0] if failures else f"all have fewer than {config.min_frames} frames"
        raise ValueError(f"{folder}: none of {packed[-1].stop} videos could be packed: {reason}")
    # Remove shards of videos that an earlier run still found
    for path in (*folder.glob("shard-*.tar"), *folder.glob("shard-*.json")):
        if path.stem not in names:
            path.unlink()
    # Write index and report
    shards = [each.shard for each in full if each.shard is not None]
    entries = [entry for each in full for entry in each.entries]
    content_hash = write_index(folder, found.class_names, asdict(config), shards, entries)
    report = make_report(found, packed, content_hash, hashed.bytes)
    write_json(folder / REPORT, asdict(report))
    return report
