"""Every weights file of others that this project can use: what for, where from, how to know it."""

from common.weights import PublishedWeights

METRICS = "JunyaoHu/common_metrics_on_video_quality on GitHub"
METRICS_URL = "https://github.com/JunyaoHu/common_metrics_on_video_quality/raw/main/fvd"
TGAN2 = "rezoo/tgan2 (TGANv2) on GitHub, release v1.0"
TGAN2_URL = "https://github.com/rezoo/tgan2/releases/download/v1.0"
I3D_WITHOUT = (
    "Without it, train a classifier on your own clips (scripts/train_classifier.py) and pass "
    "--classifier: its score is not FVD, but compares your own runs"
)
I3D = PublishedWeights(
    name="I3D weights, Kinetics-400",
    file="i3d_pretrained_400.pt",
    use="FVD, rFVD",
    variable="IVVAE_I3D",
    source=f"{METRICS}, folder fvd/videogpt",
    url=f"{METRICS_URL}/videogpt/i3d_pretrained_400.pt",
    size=51,
    without=I3D_WITHOUT,
    blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
I3D_TORCHSCRIPT = PublishedWeights(
    name="I3D as a TorchScript program",
    file="i3d_torchscript.pt",
    use="FVD, --preset i3d_torchscript",
    variable="IVVAE_I3D_TORCHSCRIPT",
    source=f"{METRICS}, folder fvd/styleganv",
    url=f"{METRICS_URL}/styleganv/i3d_torchscript.pt",
    size=51,
    without=I3D_WITHOUT,
    blob="93daef59c7ae0e9e8f76225521407e60cbafa6aa",
)
C3D_WITHOUT = (
    "Without it, FVD and the reconstruction metrics still work, and --classifier takes a network "
    "trained by scripts/train_classifier.py"
)
C3D_TORCHSCRIPT = PublishedWeights(
    name="C3D for UCF-101 as a TorchScript program",
    file="c3d_ucf101.pt",
    use="IS",
    variable="IVVAE_C3D",
    source="the Dropbox link in universome/stylegan-v on GitHub, src/metrics/inception_score.py",
    size=314,
    without=C3D_WITHOUT,
)
C3D = PublishedWeights(
    name="C3D weights for UCF-101 (chainer)",
    file="conv3d_deepnetA_ucf.npz",
    use="IS",
    variable="IVVAE_C3D",
    source=TGAN2,
    url=f"{TGAN2_URL}/conv3d_deepnetA_ucf.npz",
    size=314,
    without=C3D_WITHOUT,
)
C3D_MEAN = PublishedWeights(
    name="mean video of C3D",
    file="mean2.npz",
    use="IS",
    variable="IVVAE_C3D_MEAN",
    source=TGAN2,
    url=f"{TGAN2_URL}/mean2.npz",
    size=4,
    without=C3D_WITHOUT,
)
LPIPS_WITHOUT = (
    "Without it, evaluation with --lpips none measures everything else. In training, name the file "
    "in loss.perceptual_weights, or set loss.perceptual to none"
)
LPIPS_ALEX = PublishedWeights(
    name="AlexNet for LPIPS",
    file="alexnet-owt-7be5be79.pth",
    use="LPIPS",
    variable="IVVAE_ALEXNET",
    source="torchvision (AlexNet_Weights.IMAGENET1K_V1)",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    size=244,
    without=LPIPS_WITHOUT,
    sha256="7be5be79",
)
LPIPS_VGG = PublishedWeights(
    name="VGG-16 for LPIPS",
    file="vgg16-397923af.pth",
    use="LPIPS, training",
    variable="IVVAE_VGG16",
    source="torchvision (VGG16_Weights.IMAGENET1K_V1)",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    size=553,
    without=LPIPS_WITHOUT,
    sha256="397923af",
)

VIDEOMAE = PublishedWeights(
    name="VideoMAE v2 for content-debiased FVD",
    file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    use="FVD, --preset videomae",
    variable="IVVAE_VIDEOMAE",
    source="OpenGVLab/VideoMAEv2 on GitHub, model zoo, after its form",
    size=4047,
    without="The i3d presets work without it",
)
JEPA = "facebookresearch/jepa on GitHub, V-JEPA ViT-H/16 at 224"
VJEPA = PublishedWeights(
    name="V-JEPA ViT-H/16 for JEDi",
    file="vjepa/vith16.pth.tar",
    use="JEDi, --preset vjepa",
    variable="IVVAE_VJEPA",
    source=JEPA,
    url="https://dl.fbaipublicfiles.com/jepa/vith16/vith16.pth.tar",
    size=2535,
    without="The i3d presets work without it",
)
VJEPA_PROBE = PublishedWeights(
    name="Something-Something v2 probe of V-JEPA ViT-H/16 for JEDi",
    file="vjepa/ssv2-probe.pth.tar",
    use="JEDi, --preset vjepa",
    variable="IVVAE_VJEPA_PROBE",
    source=f"{JEPA}, attentive probe of SSv2",
    url="https://dl.fbaipublicfiles.com/jepa/vith16/ssv2-probe.pth.tar",
    size=80,
    without="The i3d presets work without it",
)
IVVAE_WITHOUT = "Without it, train one (scripts/train_vae.py) or compare others"
IVVAE = {
    name: PublishedWeights(
        name=f"released IV-VAE, {name.removeprefix('ivvae_').replace('_', ', ')}",
        file=f"{name}.pth",
        use="convert_checkpoint.py",
        variable=f"IVVAE_{name.upper()}",
        source="the authors of IV-VAE",
        size=size,
        without=IVVAE_WITHOUT,
    )
    for name, size in {
        "ivvae_z4_dim64": 429,
        "ivvae_z8_dim64": 430,
        "ivvae_z16_dim64": 431,
        "ivvae_z16_dim96": 968,
    }.items()
}
"""Released checkpoints by name. Sizes are those of the parameters in float32."""


DIFFUSERS = "diffusion_pytorch_model.safetensors"
OTHER_FILES = {"od_vae": "checkpoint.ckpt", "opensora_v12": "model.safetensors"}
COMPARATORS = {
    name: PublishedWeights(
        name=title,
        file=f"{name}/{OTHER_FILES.get(name, DIFFUSERS)}",
        use=f"--vae {name}",
        variable=f"IVVAE_{name.upper()}",
        source=f"{home} on Hugging Face, with config.json beside",
        size=size,
        without="Other VAEs are measured without it",
    )
    for name, (title, home, size) in {
        "cv_vae": ("CV-VAE", "AILab-CVC/CV-VAE, folder vae3d", 730),
        "od_vae": ("OD-VAE", "LanguageBind/Open-Sora-Plan-v1.2.0, folder vae", 957),
        "opensora_v12": ("VAE of Open-Sora v1.2", "hpcai-tech/OpenSora-VAE-v1.2", 1573),
        "cogvideox": ("VAE of CogVideoX", "THUDM/CogVideoX-2b, folder vae", 862),
        "wan": ("VAE of Wan 2.1", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, folder vae", 508),
        "wan22": ("VAE of Wan 2.2", "Wan-AI/Wan2.2-TI2V-5B-Diffusers, folder vae", 2819),
        "hunyuan_video": (
            "VAE of HunyuanVideo",
            "hunyuanvideo-community/HunyuanVideo, folder vae",
            986,
        ),
        "hunyuan_video15": (
            "VAE of HunyuanVideo 1.5",
            "hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v, folder vae",
            5043,
        ),
        "ltx_video": ("VAE of LTX-Video", "Lightricks/LTX-Video, folder vae", 1677),
        "ltx2": ("VAE of LTX-2", "Lightricks/LTX-2, folder vae", 4890),
        "mochi": ("VAE of Mochi 1", "genmo/mochi-1-preview, folder vae", 1839),
        "cosmos": (
            "VAE of Cosmos 1.0",
            "nvidia/Cosmos-1.0-Diffusion-7B-Text2World, folder vae",
            423,
        ),
        "allegro": ("VAE of Allegro", "rhymes-ai/Allegro, folder vae", 700),
        "vidtok": ("VidTok", "microsoft/VidTok, converted to diffusers' format", 630),
    }.items()
}
"""VAEs of others by the name that --vae takes. Sizes are those of the parameters in float32; files
may be half as large, or hold more than one copy."""

LATTE = {
    name: PublishedWeights(
        name=f"released Latte-XL/2, {title}",
        file=f"latte/{name}.pt",
        use="latte.convert.load_released",
        variable=f"IVVAE_LATTE_{name.upper().replace('-', '_')}",
        source="maxin-cn/Latte on Hugging Face",
        size=2695,
        without="Without it, train one (scripts/train_latte.py)",
    )
    for name, title in {
        "ucf101": "UCF-101",
        "skytimelapse": "SkyTimelapse",
        "ffs": "FaceForensics",
        "taichi-hd": "Taichi-HD",
    }.items()
}

ALL = (
    *(I3D, I3D_TORCHSCRIPT, C3D, C3D_MEAN, C3D_TORCHSCRIPT, LPIPS_ALEX, LPIPS_VGG),
    *(VIDEOMAE, VJEPA, VJEPA_PROBE),
    *IVVAE.values(),
    *COMPARATORS.values(),
    *LATTE.values(),
)
