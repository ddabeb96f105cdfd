"""The commands besides the chain whose configs `benchmarks.faults` changes; they read its files."""

import os
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.fault_chain import Command, run
from data.importers import IMPORTERS
from vae import VAEConfig, VideoVAE

SETS = {
    "faceforensics": ["a.mp4"],
    "folder": ["a/0.mp4", "b/1.mp4"],
    "kinetics400": ["train/a/aaaaaaaaaaa.mp4"],
    "kinetics600": ["train/a/aaaaaaaaaaa.mp4"],
    "ucf101": ["A/v_A_g01_c01.avi", "B/v_B_g01_c01.avi"],
    "activitynet": ["v_aaaaaaaaaaa.mp4"],
    "openvid": ["video/a.mp4"],
    "sky_timelapse": ["sky_train/x/x_1/0.jpg", "sky_train/x/x_1/1.jpg", "sky_test/y/y_1/0.jpg"],
    "frames": ["a/x/0.jpg", "a/x/1.jpg"],
    "images": ["a/0.jpg", "b/1.jpg"],
}
"""Files of each set in miniature."""
TABLES = {
    "activitynet/activity_net.v1-3.min.json": '{"database": {"aaaaaaaaaaa": {"subset": "training", '
    '"annotations": [{"label": "A", "segment": [0, 0.4]}]}}}',
    "openvid/data/train/OpenVid-1M.csv": "video,caption\na.mp4,A\n",
}
"""Their annotations."""
TINY_VAE = {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2, 2], "num_blocks": 1}


def other_commands(root: Path) -> list[Command]:
    """Every other script and subcommand than those of the chain that `make_chain` made at `root`.

    Raises:
        ValueError: what they read could not be made.
    """
    inputs = root / "inputs"
    shards, vae = inputs / "shards", inputs / "train_vae" / "export"
    latents, samples = inputs / "cache_latents", inputs / "sample"
    classifier = inputs / "train_classifier" / "export"
    clips = {"height": 16, "width": 16}
    size = {"frames": 5, **clips}

    # What the experiments train and sample by
    configs = root / "configs"
    configs.mkdir(exist_ok=True)
    training = {"folder": "x", "steps": 2, "global_batch_size": 2, "save_every": 2}
    row = {
        "train": {**training, "evaluate_every": 2},
        "data": {"folder": str(shards), **size},
        "held_out": {"folder": str(shards), **size},
        "num_held_out_clips": 1,
        "num_previews": 0,
        "model": TINY_VAE,
        "loss": {"perceptual": "none"},
    }
    latte = {"size": "custom", "hidden_size": 16, "depth": 2, "num_heads": 2}
    curve = {
        "train": {**training, "save_every": 1},
        "latents": str(inputs / "latents_17_frames"),
        "model": {**latte, "class_conditional": True},
    }
    drawn = {"latte": "x", "vae": str(vae), "out": "x", "num_clips": 2, "sampler": {"steps": 2}}
    packed = {"folder": str(shards), **size, "frames": 17, "stride": 1, "short_clips": "loop"}
    score = {"real": str(shards), "classifier": str(classifier), **size, "stride_real": 1}
    given = {
        "row": row,
        "curve": curve,
        "drawn": drawn,
        "packed": {"data": packed, "workers": 0},
        "card": {"num_clips": 1, "denoiser": {"steps": 2, "hidden_size": 8}},
        "score": {**score, "num_clips": 2, "resamples": 0},
    }
    files = {name: configs / f"{name}.yaml" for name in given}
    for name, values in given.items():
        files[name].write_text(yaml.safe_dump(values))

    # What others read
    long = {"vae": vae, "workers": 0, **{f"data.{name}": value for name, value in packed.items()}}
    reconstruct = Command("eval_reconstruction.py", {"vae": [f"ours={vae}"], "data": shards,
        **size, "num_clips": 2, "save_clips": 2, "lpips": "none", "rfvd": "none", "workers": 0,
    })  # fmt: skip
    external, released = inputs / "external", inputs / "released"
    external.mkdir(exist_ok=True)
    for tar in shards.glob("*.tar"):
        if not (external / tar.name).exists():
            os.link(tar, external / tar.name)
    if not released.exists():
        VideoVAE(VAEConfig(z_dim=4, dim=8)).save_pretrained(released)
    made = {
        inputs / "latents_17_frames": Command("cache_latents.py", long),
        inputs / "reconstruction": reconstruct,
        inputs / "tars": Command("export_latents.py", {"latents": latents}),
    }
    for output, command in made.items():
        if not output.exists():
            code = run(command, command.arguments(output), root / "inputs.log")
            if code:
                raise ValueError(f"{command.script} ended with {code}: see {root / 'inputs.log'}")

    reconstruction, page = inputs / "reconstruction", {"file": "out.html"}
    figure = {
        "comparison": {"run": reconstruction},
        "caption": {"data": shards, "vae": [str(vae)], **clips, "text": "A"},
        "latents": {"data": shards, "vae": vae, **clips},
        "unselected": {"data": shards, "vae": vae, **clips},
        "positions": {"run": [str(reconstruction)]},
        "preservation": {"run": [str(reconstruction)]},
        "samples": {"data": [str(samples)], "frames": [0, 4]},
    }
    _make_sets(root / "sets", root / "videos" / "a" / "0.mp4")
    packing = {"short_side": 32, "min_frames": 1, "workers": 0}
    more = {
        "digits": {"num_clips": 4},
        **{n: {"split": "all"} for n in ("faceforensics", "ucf101")},
    }
    sets = {n: {"root": root / "sets" / n, **packing, **more.get(n, {})} for n in IMPORTERS}
    fast = {"steps": 2, "method": "ddim"}
    return [
        reconstruct,
        made[inputs / "tars"],
        Command("eval_is.py", {"fake": samples, "classifier": classifier, **size, "skip_fake": 0,
                "num_clips": 4, "runs": 1, "splits": 1}, file="out.json"),
        Command("index_shards.py", {"shards": external, "workers": 0}),
        Command("inspect_cache.py", {"latents": latents, "vae": vae, "data": shards}),
        Command("verify_data.py", {"data": shards, "workers": 0}, "report", file="out.json"),
        Command("convert_checkpoint.py", {"source": released, "to": "released"}, file="out.pth"),
        Command("report.py", {"results": [f"a={reconstruction}", f"b={inputs / 'eval_fvd.json'}",
                f"c={samples}", f"d={inputs / 'train_vae'}"]}, **page),
        Command("demo.py", {}, None),
        Command("doctor.py", {}, None),
        Command("ablate.py", {"video": files["row"], "architectures": ["ivvae"], "seeds": [0]},
                "folder"),
        Command("learning_curve.py", {"train": files["curve"], "samples": files["drawn"],
                "classifier": classifier, "reference": shards, "percents": [0, 50, 100],
                "seeds": [0], "full": fast, "fast": fast}, "folder"),
        Command("chain.py", {"rows": [{"name": "ours", "vae": str(vae)}], "seeds": [0],
                "latents": files["packed"], "card": files["card"], "latte": files["curve"],
                "samples": files["drawn"], "score": files["score"]}, "folder"),
        *(Command("figures.py", options, subcommand=name, file="out.png")
          for name, options in figure.items()),
        *(Command("make_shards.py", options, subcommand=name) for name, options in sets.items()),
    ]  # fmt: skip


def _make_sets(folder: Path, video: Path) -> None:
    """Every data set with one video or two, as they lie on disk."""
    for name, files in SETS.items():
        for path in (folder / name / file for file in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".jpg":
                Image.new("RGB", (64, 64)).save(path)
            elif not path.exists():
                os.link(video, path)
    for file, text in TABLES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
