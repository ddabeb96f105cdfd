"""Models as folders or hub ids: `config.json` with the class name, and `model.safetensors`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import (
    PyTorchModelHubMixin,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.files import read_json
from common.weights import WeightsNotFound

OUT_OF_REACH = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
"""What `hub_file` raises for a file that cannot be had."""


class Pretrained(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for models built from one dataclass.

    A subclass is an `nn.Module` whose only argument is `config`, kept as `self.config`, and names
    the dataclass in `config_class`. Loading is strict and returns the model in eval mode.
    """

    config_class: ClassVar[type]
    config: Any

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, **options: Any
    ) -> Self:
        """Load from a folder or a hub id, in eval mode.

        Args:
            source: the folder, or the hub id.
            options: of `hub_file`.
        Raises:
            ValueError: no such folder or id (`WeightsNotFound`), another class's folder, keys or
            shapes that do not fit.
        """

        def find(name: str) -> Path:
            if Path(source).is_dir():
                return Path(source) / name
            return hub_file(str(source), name, **options)

        try:
            config = read_json(find("config.json"))
            saved = config.pop("model_class", None)
            if saved != cls.__name__:
                raise ValueError(
                    f"{source}: holds a {saved or 'model of unnamed class'}, not a {cls.__name__}"
                )
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            model = cls(cls.config_class(**values))  # type: ignore[call-arg]
            model.load_state_dict(load_file(find("model.safetensors")))  # type: ignore[attr-defined]
            return model.eval()  # type: ignore[attr-defined]
        except (*OUT_OF_REACH, FileNotFoundError) as error:
            raise WeightsNotFound.at(
                source,
                f"no {cls.__name__} here, nor a hub id within reach ({str(error).splitlines()[0]})",
                f"config.json and model.safetensors of an export into a folder at {source}",
            ) from None
        except (RuntimeError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{source}: is no valid {cls.__name__} folder: {error}") from None

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"model_class": type(self).__name__, **asdict(self.config)}
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {name: value.contiguous() for name, value in self.state_dict().items()}  # type: ignore[attr-defined]
        save_file(state, save_directory / "model.safetensors", metadata={"format": "pt"})


def saved_class(folder: str | Path) -> str | None:
    """The class of the model that `save_pretrained` wrote to a folder; None if it did not."""
    config = Path(folder) / "config.json"
    return read_json(config).get("model_class") if config.is_file() else None


def hub_file(
    repository: str,
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """A file of a hub repository; from the local cache where the hub is out of reach.

    The hub is asked once: huggingface_hub itself tries again for 24 s where there is no network.

    Raises:
        LocalEntryNotFoundError: the hub is out of reach and the cache has no such file.
        HfHubHTTPError: the hub has none, or does not give it.
        HFValidationError: this is no hub id.
    """
    cached = try_to_load_from_cache(repository, name, cache_dir=cache_dir, revision=revision)
    offline = local_files_only or constants.HF_HUB_OFFLINE
    reason = "the hub is switched off"
    if not isinstance(cached, str) and not offline:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), token=token)
        except HfHubHTTPError:
            raise
        except Exception as error:  # noqa: BLE001 the HTTP library's own, which differs by version
            offline, reason = True, f"the hub does not answer: {error}"
    if offline and not isinstance(cached, str):
        raise LocalEntryNotFoundError(f"{reason}, and the local cache has no {name}")
    return Path(
        hf_hub_download(
            repository,
            name,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=offline,
            token=token,
        )
    )
