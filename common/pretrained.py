"""Models as folders or hub ids: `config.json` with the class name, and `model.safetensors`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.files import read_json


class WeightsNotFound(ValueError):
    """There are no weights where they were looked for."""

    def __init__(self, source: str | Path, reason: str, put: str):
        """`reason`: what is there instead; `put`: what to put there, to end "put ... at SOURCE"."""
        self.remedy = f"weights not found: put {put}"
        super().__init__(f"{source}: {reason}; {self.remedy}")


class Pretrained(PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for models built from one dataclass.

    A subclass is an `nn.Module` whose only argument is `config`, kept as `self.config`, and names
    the dataclass in `config_class`. Loading is strict and returns the model in eval mode.
    """

    config_class: ClassVar[type]
    config: Any

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load from a folder or a hub id (keywords: `revision`, `token`, `cache_dir`, ...).

        Raises:
            ValueError: no such folder or id (`WeightsNotFound`), another class's folder, keys or
            shapes that do not fit.
        """
        try:
            return super().from_pretrained(str(source), **kwargs)
        except (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            FileNotFoundError,
        ) as error:
            raise WeightsNotFound(
                source,
                f"no {cls.__name__} here, nor a hub id within reach ({str(error).splitlines()[0]})",
                f"config.json and model.safetensors of an export at {source}",
            ) from None
        except (RuntimeError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{source}: is no valid {cls.__name__} folder: {error}") from None

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"model_class": type(self).__name__, **asdict(self.config)}
        (save_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {name: value.contiguous() for name, value in self.state_dict().items()}  # type: ignore[attr-defined]
        save_file(state, save_directory / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> Self:
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: kwargs[name] for name in known if name in kwargs}

        def find(name: str) -> str:
            if Path(model_id).is_dir():
                return str(Path(model_id) / name)
            return hf_hub_download(model_id, name, **options)

        config = read_json(find("config.json"))
        saved = config.pop("model_class", None)
        if saved != cls.__name__:
            raise ValueError(
                f"{model_id}: holds a {saved or 'model of unnamed class'}, not a {cls.__name__}"
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        model = cls(cls.config_class(**values))  # type: ignore[call-arg]
        model.load_state_dict(load_file(find("model.safetensors")))  # type: ignore[attr-defined]
        return model.eval()  # type: ignore[attr-defined]
