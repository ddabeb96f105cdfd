"""A small packed data set of bar-code videos, for the tests of everything that reads shards."""

from collections.abc import Sequence
from pathlib import Path

from data.importers import ImportResult
from data.shards.index import ShardIndex
from data.shards.pack_video import ShardConfig
from data.shards.write import write_shards
from data.video.video_record import VideoRecord
from tests.builders.videos import write_barcode_video

SHADES = 40
"""From one video's shade to the next: tells decoded videos apart."""


def pack(
    folder: Path,
    frames: Sequence[int],
    *,
    per_shard: int = 2,
    class_names: Sequence[str] = ("a", "b"),
    broken: Sequence[int] = (),
) -> Path:
    """Pack one 64x96 video of each length; label i % classes; those in `broken` cannot be read."""
    records = [
        VideoRecord(
            f"video{i}",
            write_barcode_video(folder / "videos" / f"{i}.mp4", count, shade=i * SHADES),
            i % len(class_names) if class_names else None,
        )
        for i, count in enumerate(frames)
    ]
    config = ShardConfig(reencode=False, min_frames=1, videos_per_shard=per_shard)
    write_shards(ImportResult(records, list(class_names)), folder / "shards", config)
    for i in broken:
        index = ShardIndex.load(folder / "shards")
        with open(index.path_of(i), "r+b") as file:
            file.seek(index.entries[i].members["mp4"][0])
            file.write(b"<html>")
    return folder / "shards"
