"""Data sets as they lie on users' disks, by name.

    result = UCF101(root=Path("UCF-101"), split="train").scan()
    result.records, result.class_names, result.missing, result.unlabeled, result.notes

A new set is a frozen dataclass derived from `Importer` with its options as fields, and a line here.

May import `common` and `data.video`.
"""

from data.importers.base import Importer, ImportResult
from data.importers.digits import Digits
from data.importers.folders import Folder, FrameFolders, Images
from data.importers.sets import UCF101, FaceForensics, OpenVid, SkyTimelapse
from data.importers.youtube import ActivityNet, Kinetics400, Kinetics600

__all__ = ["IMPORTERS", "ImportResult", "Importer"]

IMPORTERS: dict[str, type[Importer]] = {
    "ucf101": UCF101,
    "sky_timelapse": SkyTimelapse,
    "faceforensics": FaceForensics,
    "kinetics400": Kinetics400,
    "kinetics600": Kinetics600,
    "activitynet": ActivityNet,
    "openvid": OpenVid,
    "folder": Folder,
    "frames": FrameFolders,
    "images": Images,
    "digits": Digits,
}
"""The command line's name of each set."""
