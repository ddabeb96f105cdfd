"""FSDP2: weights, gradients, AdamW's moments and averages in equal parts on all processes.

Accelerate's launcher and config file ask for it, and torch's `fully_shard` does it. Accelerate's
own preparation is not used: it takes one model, sums gradients in bf16, lets the saving of a
checkpoint step an optimizer that has yet to begin, and does nothing on a CPU.

Nor is `torch.distributed.checkpoint.state_dict`: it begins, at step 1, an optimizer that has yet to
begin, such as a discriminator's, and names the moments where one process numbers them.

Whatever leaves a run, a checkpoint, an export or a model to be looked at, is whole: the same as one
process would have written or shown.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

DTYPES = {"no": None, "bf16": torch.bfloat16}


def is_active(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP, on a CPU too, where Accelerate overlooks it."""
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        return parse_flag_from_env("ACCELERATE_USE_FSDP")
    return accelerator.distributed_type == DistributedType.FSDP


def check(accelerator: Accelerator) -> None:
    """Refuse (`ValueError`) what a launcher may ask of FSDP and is not done here."""
    plugin = _plugin(accelerator)
    wrong = {
        f"fsdp_version={plugin.fsdp_version}": plugin.fsdp_version != 2,
        f"mixed_precision={accelerator.mixed_precision}": accelerator.mixed_precision not in DTYPES,
        "fsdp_offload_params=true": type(plugin.cpu_offload) is not OffloadPolicy,
        "fsdp_activation_checkpointing=true": plugin.activation_checkpointing,
        "a parallelism_config": accelerator.parallelism_config is not None,
    }
    if asked := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(
            f"FSDP with {', '.join(asked)} is not supported: use fsdp_version 2 without offloading "
            "or other parallelism, precision no or bf16, and --activation_checkpointing. "
            "configs/accelerate/fsdp.yaml is an example."
        )


def shard(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Split the weights of `module`, in place, over all processes, which hold the same ones.

    A unit, whose weights are put together while it runs, is an entry of a `ModuleList` (a layer or
    block), and what is left. With bf16, weights travel in bf16 and gradients in float32.
    """
    plugin, dtype = _plugin(accelerator), DTYPES[accelerator.mixed_precision]
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    module.to(accelerator.device)
    for parameter in module.parameters():  # as `fully_shard` wants them
        parameter.data = parameter.data.contiguous()
    _autocast(module, accelerator)
    options = {"param_dtype": dtype, "reduce_dtype": torch.float32, "cast_forward_inputs": False}
    for unit in _units(module):
        fully_shard(
            unit,
            mesh=mesh,
            reshard_after_forward=bool(plugin.reshard_after_forward),
            mp_policy=MixedPrecisionPolicy(**options),
        )
    # the rest stays whole until the backward pass: a loss may need gradients of the last layer
    policy = MixedPrecisionPolicy(**options, output_dtype=torch.float32)
    fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    return module


def replicate(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """`module`, whole on each process, with gradients averaged over them."""
    _autocast(module.to(accelerator.device), accelerator)
    return DistributedDataParallel(module, broadcast_buffers=False)


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Within, backward passes add gradients up on each process for itself."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
        return
    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


@torch.no_grad()
def clip_grad_norm(module: nn.Module, limit: float) -> Tensor:
    """Scale gradients down to a norm of `limit`, of all parts together; returns it before."""
    if not isinstance(module, FSDPModule):
        return nn.utils.clip_grad_norm_(module.parameters(), limit).detach()
    parts = [local(p.grad) for p in module.parameters() if p.grad is not None]
    # torch's own sums each parameter up over the processes; here it is once for all
    squares = torch.stack(torch._foreach_norm(parts)).double().square().sum()
    dist.all_reduce(squares)
    norm = squares.sqrt().float()
    torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1))
    return norm


def local(value: Tensor) -> Tensor:
    """This process's part of `value`, in the same memory; all of it where it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def full_state(value: Tensor) -> Tensor:
    """`value` put together; all processes have to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class MetaCopy:
    """A module's structure on the meta device, to be filled with those of a sharded one."""

    def __init__(self, module: nn.Module):
        """`module`: not yet sharded."""
        empty = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
            for p in module.parameters()
        }
        self._module = copy.deepcopy(module, empty).eval()

    def unsharded_copy(self, module: nn.Module, accelerator: Accelerator) -> nn.Module:
        """A plain module, on the accelerator, with the weights of `module`; all processes have to
        ask for it."""
        weights = {name: full_state(value) for name, value in module.state_dict().items()}
        module = copy.deepcopy(self._module)
        module.load_state_dict(weights, assign=True)
        return module.requires_grad_(False).to(accelerator.device)


def load_weights(module: nn.Module, file: Path) -> None:
    """Load a safetensors file of whole weights, of which a sharded module keeps its parts."""
    targets = module.state_dict()
    with safe_open(file, "pt") as saved:
        names = saved.keys()
        module.load_state_dict({n: _like(targets.get(n), saved.get_tensor(n)) for n in names})


def checkpoint_whole(
    accelerator: Accelerator, trained: Sequence[tuple[nn.Module, torch.optim.Optimizer]]
) -> None:
    """Make the accelerator's checkpoints hold `trained`, in the files one process would write.

    So they can be resumed by any number of processes, with FSDP or without.
    """

    def collected(value: Tensor) -> Tensor | None:
        value = full_state(value)
        return value.cpu() if accelerator.is_main_process else None

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        for (module, optimizer), file in zip(trained, _files(folder, len(trained)), strict=True):
            module = accelerator.unwrap_model(module)
            state = tree_map_only(Tensor, collected, module.state_dict())
            if accelerator.is_main_process:
                save_file({name: value.contiguous() for name, value in state.items()}, file[0])
            state = tree_map_only(Tensor, collected, optimizer.state_dict())
            if accelerator.is_main_process:
                torch.save(state, file[1])

    def load(models: list[nn.Module], folder: str) -> None:
        for (module, optimizer), file in zip(trained, _files(folder, len(trained)), strict=True):
            load_weights(accelerator.unwrap_model(module), file[0])
            state = torch.load(file[1], map_location="cpu", mmap=True, weights_only=True)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for i, moments in state["state"].items():
                parameter = parameters[i]
                for name, value in moments.items():
                    part = _like(parameter, value) if value.shape == parameter.shape else value
                    moments[name] = part.clone()  # off the file
            optimizer.load_state_dict(state)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _files(folder: str, count: int) -> list[tuple[Path, Path]]:
    """Weights and optimizer of each, under the names that Accelerate gives them."""
    names = ["" if i == 0 else f"_{i}" for i in range(count)]
    root = Path(folder)
    return [(root / f"model{n}.safetensors", root / f"optimizer{n}.bin") for n in names]


def _like(target: Tensor | None, value: Tensor) -> Tensor:
    """This process's part of `value`, if `target` is a part."""
    if not isinstance(target, DTensor):
        return value
    value = value.to(target.device).contiguous()
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def _units(module: nn.Module) -> list[nn.Module]:
    """Entries of the outermost `ModuleList`s; those of a list of lists are the inner ones'."""
    units: list[nn.Module] = []
    for child in module.children():
        is_entry = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList)
        units += [child] if is_entry else _units(child)
    return units


def _autocast(module: nn.Module, accelerator: Accelerator) -> None:
    """Run its forward pass in the precision of the run, as Accelerate's preparation does."""
    forward = module.forward

    @wraps(forward)
    def within(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    module.forward = within


def _plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin:
    """The launcher's options for FSDP."""
    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
