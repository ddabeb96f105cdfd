"""What packing would probably give, by the headers of the files alone."""

from collections import Counter
from functools import partial

from tqdm import tqdm

from data.importers import ImportResult
from data.pool import map_ordered
from data.shards.pack_video import Failed, ShardConfig, probe_one
from data.shards.report import list_counts, list_names
from data.video.decode_errors import printable


def dry_run(scan: ImportResult, config: ShardConfig, workers: int) -> list[str]:
    """Look at each video's header and say, for people, what would be packed; nothing is written."""
    hours, short, failed = 0.0, [], []
    results = map_ordered(partial(probe_one, config=config), scan.records, workers)
    bar = tqdm(results, total=len(scan.records), unit="video")
    for seen, record in zip(bar, scan.records, strict=True):
        if isinstance(seen, Failed):
            failed.append(seen.reason)
        elif seen.frames < config.min_frames:
            short.append(f"{printable(record.path)}: {seen.frames} frames")
        else:
            hours += seen.frames / seen.fps / 3600
    counts = Counter(record.label for record in scan.records)
    return [
        f"by the headers: {hours:.2f} hours, {len(short)} too short, {len(failed)} failed",
        *list_names("too short", short),
        *list_names("failed", failed),
        *list_counts({name: counts[label] for label, name in enumerate(scan.class_names)}),
        "Nothing was written.",
    ]
