"""The comparators' checkpoints, the registry, and the adapters of diffusers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from common import weights as common_weights
from common.weights import WeightsNotFound
from tests.builders.tiny_comparators import LIMIT, distance, smallest, tiny, video
from tests.builders.vectors import load_case, uniform
from vae import VAEConfig, VideoVAE
from vae.base import VideoAutoencoder
from vae.checkpointing import enable_activation_checkpointing
from vae.comparators.cv_vae import CVVAE
from vae.comparators.diffusers_table import ROWS
from vae.comparators.diffusers_vae import ADAPTERS, DiffusersConfig, DiffusersVAE
from vae.comparators.od_vae import ODVAE
from vae.comparators.opensora_v12 import OpenSoraVAE
from vae.convert import from_wan
from vae.registry import COMPARATORS, GCCONV, comparator_config, load_found, load_vae, named_sources

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> dict[str, Weights]:
    return {name: load_case(name).weights() for name in ("cvvae", "odvae", "opensora_v12")}


def official_cv_vae(folder: Path, state: Weights, **config) -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    values = {**load_case("cvvae").info["config"], **config}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def official_od_vae(folder: Path, checkpoint: dict, **config) -> Path:
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoint.ckpt")
    values = {**load_case("odvae").info["config"], **config}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def official_open_sora(folder: Path, state: Weights) -> Path:
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "VideoAutoencoderPipeline"}))
    return folder


@torch.no_grad()
def check_case(model: VideoAutoencoder, name: str, index: int) -> None:
    reference = load_case(name)
    case = reference.info["cases"][index]
    x = uniform(case["input_seed"], case["input_shape"], case["input_scale"])
    mean = model.encode(x).mean
    if name == "opensora_v12":
        mean = model.normalize(mean)
    assert distance(mean, reference.outputs[case["outputs"][0]]) < LIMIT


def test_cv_vae_of_a_folder_or_the_whole_repository(tmp_path, weights):
    official_cv_vae(tmp_path / "repo" / "vae3d", weights["cvvae"])
    for source in (tmp_path / "repo", tmp_path / "repo" / "vae3d"):
        model = load_vae(f"cv_vae:{source}")
        assert isinstance(model, CVVAE)
        assert (model.config.dim, model.config.z_dim) == (32, 4)
        assert not model.training
        check_case(model, "cvvae", 3)


def test_cv_vae_of_another_version_names_the_difference(tmp_path, weights):
    folder = official_cv_vae(tmp_path / "a", weights["cvvae"], causal_decoder=True)
    with pytest.raises(ValueError, match="causal_decoder is true, not false"):
        load_vae(f"cv_vae:{folder}")
    sd3 = dict(weights["cvvae"])
    sd3["quant_conv.weight"] = torch.zeros(1)
    sd3["encoder.conv_out.weight"] = torch.zeros(32, 128, 3, 3, 3)
    del sd3["decoder.conv_out.bias"]
    folder = official_cv_vae(tmp_path / "b", sd3)
    with pytest.raises(ValueError) as error:
        load_vae(f"cv_vae:{folder}")
    for part in (
        "not a CV-VAE",
        "missing decoder.conv_out.bias",
        "unexpected quant_conv.weight",
        "encoder.conv_out.weight has shape (32, 128, 3, 3, 3), not (8, 128, 3, 3, 3)",
    ):
        assert part in str(error.value)


def test_od_vae_prefers_the_averaged_weights(tmp_path, weights):
    state = weights["odvae"]
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    averaged = {f"module.{name}": value for name, value in state.items()}
    forms = {
        "ema": {"ema_state_dict": averaged, "state_dict": {"gen_model": other}},
        "generator": {"ema_state_dict": {}, "state_dict": {"gen_model": state}},
        "plain": {"state_dict": state},
        "bare": state,
    }
    for name, checkpoint in forms.items():
        folder = official_od_vae(tmp_path / name / "vae", checkpoint)
        sources = {"ema": folder.parent, "bare": folder / "checkpoint.ckpt"}
        model = load_vae(f"od_vae:{sources.get(name, folder)}")
        assert isinstance(model, ODVAE)
        check_case(model, "odvae", 3)


def test_od_vae_of_another_version_names_the_difference(tmp_path, weights):
    state = weights["odvae"]
    folder = official_od_vae(tmp_path / "a", {"state_dict": state}, encoder_attention="AttnBlock3D")
    message = 'encoder_attention is "AttnBlock3D", not "AttnBlock3DFix"'
    with pytest.raises(ValueError, match=message):
        load_vae(f"od_vae:{folder}")
    renamed = {name.replace("conv_in.conv", "conv_in"): value for name, value in state.items()}
    folder = official_od_vae(tmp_path / "b", {"state_dict": renamed})
    with pytest.raises(ValueError, match=r"no decoder\.conv_in\.conv\.weight"):
        load_vae(f"od_vae:{folder}")
    folder = official_od_vae(tmp_path / "c", {"state_dict": {}, "epoch": 3})
    with pytest.raises(ValueError, match="neither ema_state_dict nor state_dict"):
        load_vae(f"od_vae:{folder}")


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_code_in_a_pickle_is_not_run_and_damage_is_named(tmp_path, weights):
    folder = official_od_vae(tmp_path / "evil", {"state_dict": {"a": Evil()}})
    with pytest.raises(ValueError, match="plain weights, or damaged"):
        load_vae(f"od_vae:{folder}")
    folder = official_cv_vae(tmp_path / "cut", weights["cvvae"])
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="or damaged"):
        load_vae(f"cv_vae:{folder}")


def test_open_sora_takes_shift_and_scale_from_the_file(tmp_path, weights):
    state = dict(weights["opensora_v12"])
    model = load_vae(f"opensora_v12:{official_open_sora(tmp_path / 'a', state)}")
    assert isinstance(model, OpenSoraVAE)
    check_case(model, "opensora_v12", 4)
    state["scale"] = torch.full((1, 4, 1, 1, 1), 2.0)
    model = load_vae(f"opensora_v12:{official_open_sora(tmp_path / 'b', state)}")
    assert model.config.latent_std == (2.0,) * 4
    del state["spatial_vae.module.quant_conv.bias"]
    folder = official_open_sora(tmp_path / "c", state)
    with pytest.raises(ValueError, match=r"missing spatial_vae\.quant_conv\.bias"):
        load_vae(f"opensora_v12:{folder}")


@pytest.mark.parametrize(
    ("name", "get"),
    [
        ("cv_vae", "AILab-CVC/CV-VAE"),
        ("od_vae", "LanguageBind/Open-Sora-Plan-v1.2.0"),
        ("opensora_v12", "hpcai-tech/OpenSora-VAE-v1.2"),
        ("cogvideox", "THUDM/CogVideoX-2b"),
        ("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    ],
)
def test_missing_weights_say_what_to_get(tmp_path, name, get):
    put = rf"weights not found: put .*{get}.* on Hugging Face, with config\.json beside, at"
    there = f"{put} {tmp_path}"
    with pytest.raises(WeightsNotFound, match=rf"holds none of .*; {there}"):
        load_vae(f"{name}:{tmp_path}")
    options = {"local_files_only": True, "cache_dir": tmp_path / "cache"}
    there = f"{put} lab/nothing"
    with pytest.raises(WeightsNotFound, match=rf"nor a hub id within reach .*; {there}") as error:
        load_vae(f"{name}:lab/nothing", **options)
    assert "\n" not in str(error.value)


def test_hub_ids_are_found_in_the_cache_with_their_folder(tmp_path, weights):
    snapshot = tmp_path / "models--lab--cv" / "snapshots" / ("a" * 40)
    official_cv_vae(snapshot / "vae3d_v1-1", weights["cvvae"])
    (tmp_path / "models--lab--cv" / "refs").mkdir()
    (tmp_path / "models--lab--cv" / "refs" / "main").write_text("a" * 40)
    options = {"local_files_only": True, "cache_dir": tmp_path}
    check_case(load_vae("cv_vae:lab/cv/vae3d_v1-1", **options), "cvvae", 0)
    with pytest.raises(ValueError, match="nor a hub id within reach"):
        load_vae("cv_vae:lab/cv", **options)


def test_registry_knows_exports_by_their_class(tmp_path):
    for name in (*COMPARATORS, GCCONV):
        model = tiny(name)
        model.save_pretrained(tmp_path / name)
        sources = [str(tmp_path / name), f"{name}:{tmp_path / name}"]
        for source in sources:
            again = load_vae(source)
            assert type(again) is type(model)
            assert again.config == model.config
    ours = VideoVAE(VAEConfig(z_dim=4, dim=4, num_blocks=1))
    ours.save_pretrained(tmp_path / "ours")
    for source in (tmp_path / "ours", f"ivvae:{tmp_path / 'ours'}"):
        assert type(load_vae(source)) is VideoVAE
    with pytest.raises(ValueError, match="holds a CVVAE, not a ODVAE"):
        load_vae(f"od_vae:{tmp_path / 'cv_vae'}")
    changed = load_vae(f"{GCCONV}:{tmp_path / 'od_vae'}")
    assert changed.config.temporal == "group_causal"


def test_registry_errors(tmp_path):
    known = "ivvae, cv_vae, od_vae, opensora_v12, cogvideox, wan, wan22, "
    with pytest.raises(ValueError, match=f"no VAE named 'cvvae': use one of {known}"):
        load_vae("cvvae:/somewhere")
    with pytest.raises(ValueError, match="as in cv_vae:PATH"):
        load_vae("cv_vae:")
    with pytest.raises(ValueError, match="no comparator 'ivvae': use one of cv_vae"):
        comparator_config("ivvae", VAEConfig())
    with pytest.raises(ValueError, match=r"no VideoVAE here, .*weights not found"):
        load_vae("lab/nothing", local_files_only=True, cache_dir=tmp_path)


def test_a_name_alone_is_looked_for_where_all_weights_are(tmp_path, weights, monkeypatch):
    folders = [tmp_path / "weights", tmp_path / "cache", tmp_path / "hub"]
    monkeypatch.setattr(common_weights, "cache_folders", lambda: folders)
    monkeypatch.delenv("IVVAE_OD_VAE", raising=False)
    with pytest.raises(WeightsNotFound, match=r"od_vae/checkpoint.ckpt .*cache/od_vae"):
        load_vae("od_vae")
    found, missing = load_found({"a": "od_vae", "b": str(tiny_export(tmp_path))})
    assert list(found) == ["b"]
    assert missing["a"].startswith("weights not found: no od_vae/checkpoint.ckpt found; Get")
    official_od_vae(folders[1] / "od_vae", {"state_dict": weights["odvae"]})
    for name, temporal in (("od_vae", "causal"), (GCCONV, "group_causal")):
        model = load_vae(name)
        assert isinstance(model, ODVAE)
        assert model.config.temporal == temporal


def tiny_export(folder: Path) -> Path:
    VideoVAE(VAEConfig(z_dim=4, dim=4, num_blocks=1)).save_pretrained(folder / "tiny")
    return folder / "tiny"


def test_windows_are_asked_for_at_loading(tmp_path):
    tiny("cv_vae").save_pretrained(tmp_path / "cv")
    assert load_vae(tmp_path / "cv").config.windows == "official"
    assert load_vae(tmp_path / "cv", windows="single").config.windows == "single"
    tiny("cv_vae", windows="single").save_pretrained(tmp_path / "single")
    assert load_vae(tmp_path / "single").config.windows == "single"  # as the export says
    tiny("wan").save_pretrained(tmp_path / "wan")
    VideoVAE(VAEConfig(z_dim=4, dim=4)).save_pretrained(tmp_path / "ours")
    for name in ("wan", "ours"):
        with pytest.raises(ValueError, match="does not depend on windows"):
            load_vae(tmp_path / name, windows="single")


def test_several_are_loaded_as_far_as_they_are_there(tmp_path):
    tiny("cv_vae").save_pretrained(tmp_path / "cv")
    VideoVAE(VAEConfig(z_dim=4, dim=4)).save_pretrained(tmp_path / "ours")
    given = [f"cv_vae:{tmp_path / 'cv'}", f"us={tmp_path / 'ours'}", f"od=od_vae:{tmp_path}/od"]
    sources = named_sources(given)
    first, *others = sources
    assert others == ["us", "od"]
    vaes, missing = load_found(sources, windows="single")
    assert list(vaes) == [first, "us"]  # whose result does not depend on windows
    assert vaes[first].config.windows == "single"
    assert load_found(sources)[0][first].config.windows == "official"
    assert list(missing) == ["od"]
    assert missing["od"].startswith("weights not found: put checkpoint.ckpt of LanguageBind/")
    assert "folder vae on Hugging Face, with config.json beside" in missing["od"]
    assert missing["od"].endswith(f" at {tmp_path}/od")
    for alone in (["od"], ["od", "b"]):
        with pytest.raises(ValueError, match="weights not found: put checkpoint"):
            load_found(dict.fromkeys(alone, sources["od"]))
    (tmp_path / "cv" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is no valid CVVAE folder"):  # damage ends it
        load_found(sources)
    for twice in (["a=x", "a=y"], ["source=x"], ["../a=x"]):
        with pytest.raises(ValueError, match="not a valid file name"):
            named_sources(twice, taken=("source",))


@torch.no_grad()
@pytest.mark.parametrize("name", ["ivvae", *COMPARATORS, GCCONV])
def test_all_share_one_interface(name):
    like = VAEConfig(z_dim=4, dim=4, num_blocks=1)
    model = (VideoVAE(like) if name == "ivvae" else tiny(name)).eval()
    assert isinstance(model, VideoAutoencoder)
    frames, height, width = smallest(model)
    x = video(frames, height=height, width=width)
    posterior = model.encode(x)
    shape = model.config.latent_shape(frames, height, width)
    assert posterior.mean.shape[1:] == posterior.sample().shape[1:] == shape
    y = model.decode(model.denormalize(model.normalize(posterior.mode())), size=x.shape[2:])
    assert_close(y, model.reconstruct(x), rtol=1e-3, atol=1e-4)
    assert y.shape == x.shape
    window = {"cv_vae": 17, "od_vae": 33, GCCONV: 33, "opensora_v12": 17, "cogvideox": 9}
    window["hunyuan_video"] = 17
    assert model.native_window == window.get(name)
    assert model.config.decoded_size(posterior.mean, frames) == x.shape[2:]
    nearest = {"opensora_v12": 6, "mochi": 7, "allegro": 4}
    nearest |= dict.fromkeys(("cogvideox", "cosmos", "ltx_video", "ltx2"), 9)
    assert model.config.valid_frames(6) == nearest.get(name, 5)
    assert model.config.valid_frames(0) == (4 if name == "allegro" else 1)


@pytest.fixture(scope="module")
def cogvideox():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.7,
    ).eval()


@torch.no_grad()
def test_cogvideox_is_diffusers(tmp_path, cogvideox):
    cogvideox.save_pretrained(tmp_path / "repo" / "vae")
    x = video(17, height=16, width=16)
    theirs = cogvideox.encode(x).latent_dist
    for source in (tmp_path / "repo", tmp_path / "repo" / "vae"):
        model = load_vae(f"cogvideox:{source}")
        assert isinstance(model, ADAPTERS["cogvideox"])
        ours = model.encode(x)
        assert_close(ours.mean, theirs.mean)
        assert_close(ours.logvar, theirs.logvar)
        assert_close(model.decode(theirs.mean), cogvideox.decode(theirs.mean).sample)
        assert_close(model.normalize(theirs.mean), 0.7 * theirs.mean)
    whole = load_vae(f"cogvideox:{tmp_path / 'repo'}", windows="single")
    z = whole.encode(x).mean
    assert distance(z, theirs.mean) > 1e-4  # the norms see all frames
    assert distance(whole.decode(z), model.decode(z)) > 1e-4
    # the first window of 9 frames alone is the same either way
    assert_close(whole.encode(x[:, :, :9]).mean, theirs.mean[:, :, :3])


@torch.no_grad()
def test_wan_is_diffusers_and_our_baseline(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    wan = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, latents_mean=[0.5] * 4, latents_std=[2.0] * 4
    ).eval()
    wan.save_pretrained(tmp_path / "vae")
    model = load_vae(f"wan:{tmp_path}")
    assert isinstance(model, ADAPTERS["wan"])
    x = video(9)
    theirs = wan.encode(x).latent_dist
    assert_close(model.encode(x).mean, theirs.mean)
    assert_close(model.decode(theirs.mean), wan.decode(theirs.mean).sample)
    assert_close(model.normalize(theirs.mean), (theirs.mean - 0.5) / 2)
    baseline = from_wan(model.vae.state_dict(), VAEConfig.preset("baseline", dim=8, z_dim=4))
    assert_close(baseline.encode(x).mean, model.encode(x).mean)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "scaling", "mean", "std"),
    [
        ("wan22", {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}, 0.5, 2.0),
        ("hunyuan_video", {"scaling_factor": 0.5}, 0.0, 2.0),
        ("mochi", {"latents_mean": [1.0] * 4, "latents_std": [3.0] * 4}, 1.0, 3.0),
        ("cosmos", {"latents_mean": [0.0, 2.0] * 4, "latents_std": [1.0] * 8}, 1.0, 2**0.5),
        ("ltx_video", {"scaling_factor": 1.0}, 0.25, 4.0),
    ],
)
def test_sizes_and_scaling_come_from_diffusers_config(tmp_path, name, scaling, mean, std):
    """Of another size than `comparator_config` makes, so that nothing but the file can tell."""
    diffusers = pytest.importorskip("diffusers")
    small = comparator_config(name, VAEConfig(z_dim=4, dim=2, num_blocks=1))
    assert isinstance(small, DiffusersConfig)
    values = {**small.arguments, **scaling, ROWS[name].z: 4}
    torch.manual_seed(0)
    theirs = getattr(diffusers, ROWS[name].class_name)(**values).eval()
    if name == "ltx_video":  # which keeps them with the weights
        theirs.latents_mean.fill_(0.25)
        theirs.latents_std.fill_(4.0)
    theirs.save_pretrained(tmp_path / "vae")
    model = load_vae(f"{name}:{tmp_path}")
    assert isinstance(model, DiffusersVAE)
    assert model.config.arguments == small.arguments
    frames, height, width = smallest(model)
    x = video(frames, height=height, width=width)
    z = theirs.encode(x).latent_dist.mode()
    assert_close(model.encode(x).mean, z)
    assert_close(model.decode(z), theirs.decode(z).sample)
    assert_close(model.normalize(z), (z - mean) / std)


@torch.no_grad()
def test_windows_of_hunyuan_video_are_those_of_diffusers():
    whole, windowed = tiny("hunyuan_video", windows="single"), tiny("hunyuan_video")
    x = video(21, height=16, width=16)
    z = windowed.encode(x).mean
    assert_close(z, windowed.vae.encode(x).latent_dist.mean)
    assert distance(whole.encode(x).mean, z) > 1e-4
    assert distance(whole.decode(z), windowed.decode(z)) > 1e-4
    assert_close(whole.encode(x[:, :, :13]).mean, windowed.encode(x[:, :, :13]).mean)


def test_training_says_what_diffusers_models_cannot_do():
    for name in ("cogvideox", "wan"):
        with pytest.raises(ValueError, match="activation_checkpointing and compile"):
            enable_activation_checkpointing(tiny(name))


def test_other_versions_of_diffusers_models_are_named(tmp_path, cogvideox):
    cogvideox.save_pretrained(tmp_path / "cog")
    with pytest.raises(ValueError, match='_class_name is "AutoencoderKLCogVideoX", not "Autoencod'):
        load_vae(f"wan:{tmp_path / 'cog'}")
    file = tmp_path / "cog" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "use_quant_conv": True}))
    with pytest.raises(ValueError, match="use_quant_conv is true, not false"):
        load_vae(f"cogvideox:{tmp_path / 'cog'}")
    file.unlink()
    with pytest.raises(ValueError, match=r"config\.json: no such file\. Get"):
        load_vae(f"cogvideox:{tmp_path / 'cog'}")
    with pytest.raises(ValueError, match=r"windows=single: .*Wan 2\.1"):
        DiffusersConfig(model="wan", windows="single")
    with pytest.raises(ValueError, match=r"model='wan3': .* cogvideox, wan, wan22"):
        DiffusersConfig(model="wan3")


def test_without_diffusers_only_its_models_are_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in ("cogvideox", "wan"):
        with pytest.raises(ValueError, match=r"pip install 'ivvae\[compare\]'"):
            load_vae(f"{name}:{tmp_path}")
    with pytest.raises(ValueError, match="needs diffusers"):
        ADAPTERS["cogvideox"](DiffusersConfig(model="cogvideox"))
    tiny("cv_vae").save_pretrained(tmp_path / "cv")
    assert isinstance(load_vae(tmp_path / "cv"), CVVAE)
