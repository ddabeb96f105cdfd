"""Counts of what a pass does on a GPU, taken from tensors with a shape, a type and a device but no
values: no GPU is needed, and none is asked.

Every operation that is no view is one kernel; it reads each input and writes each output once. A
convolution's backward pass is one kernel for each gradient. What a kernel copies inside itself,
such as a change of memory format, is not seen. Compiled modules: `benchmarks.traffic_compiled`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

CUDA = torch.device("cuda:0")
aten = torch.ops.aten

_FREE = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._unsafe_view,
    aten.lift_fresh,
}
_OVERWRITES = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_}
_WAITS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero}


@dataclass
class Count:
    """Totals of a pass."""

    flops_per_second: float = 790e12
    """Rate of matrix products, for the roofline."""
    bytes_per_second: float = 3.0e12
    """Rate of memory, for the roofline."""
    kernels: int = 0
    read: int = 0
    written: int = 0
    flop: int = 0
    copies: int = 0
    """Copies between host and device, reads of a value by the host among them."""
    seconds: float = 0.0
    """Sum over kernels of what takes longer, arithmetic or memory."""

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    def add(self, read: int, written: int, flop: int = 0) -> None:
        """One kernel."""
        self.kernels += 1
        self.read += read
        self.written += written
        self.flop += flop
        self.seconds += max(flop / self.flops_per_second, (read + written) / self.bytes_per_second)


class EagerCounter(TorchDispatchMode):
    """Counts the operations inside the context; enter it within a `FakeTensorMode`."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", func)
        if packet in _WAITS and args[0].is_cuda:
            self.count.copies += 1
        if packet in (aten._local_scalar_dense, aten.is_nonzero):
            return args[0].dtype.is_floating_point + 0.0  # any value: there are none
        result = func(*args, **kwargs)
        if func.namespace == "prim" or packet in _FREE or func.is_view:
            return result
        if len(_devices((args, kwargs)) | _devices(result)) > 1 and packet in (
            aten._to_copy,
            aten.copy_,
            aten.index,
            aten.index_put_,
        ):
            self.count.copies += 1
        else:
            self._kernel(packet, args, kwargs, result)
        return result

    def _kernel(self, packet: Any, args: Any, kwargs: Any, result: Any) -> None:
        if packet is aten.convolution_backward:
            self._convolution_backward(args, result)
            return
        flop = 0
        if packet in flop_registry:
            flop = flop_registry[packet](*args, **kwargs, out_val=result)
        inputs = tree_leaves((args, kwargs))
        if packet in _OVERWRITES:
            inputs = inputs[1:]
        self.count.add(size_of(inputs), size_of(tree_leaves(result)), flop)

    def _convolution_backward(self, args: Any, result: Any) -> None:
        grad, x, weight = args[:3]
        flop = flop_registry[aten.convolution_backward](*args, out_val=result)
        wanted = sum(r is not None for r in result[:2])
        for output, inputs in zip(result, ((grad, weight), (grad, x), (grad,)), strict=True):
            if output is not None:
                share = 0 if output.ndim == 1 else flop // wanted
                self.count.add(size_of(inputs), size_of([output]), share)


def _devices(tree: Any) -> set[str]:
    """Kinds of devices of the tensors with at least one axis."""
    return {x.device.type for x in tree_leaves(tree) if isinstance(x, Tensor) and x.ndim}


def size_of(tensors: Any) -> int:
    """Bytes of the tensors, each repeated value once."""
    sizes = {
        id(x): x.element_size()
        * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
        for x in tensors
        if isinstance(x, Tensor)
    }
    return sum(sizes.values())


class CudaRules(TorchFunctionMode):
    """What PyTorch would choose on a GPU: fused attention, and float32 where autocast keeps to it.

    Autograd takes no CUDA tensors without a driver, so passes with gradients are traced on CPU
    tensors; there autocast would leave these in bfloat16.
    """

    _WIDE = (F.layer_norm, F.group_norm)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._WIDE and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, lambda x: x.float(), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            statistics = torch.is_grad_enabled()  # kept for the backward pass
            return aten._scaled_dot_product_efficient_attention(*args, None, statistics)[0]
        return func(*args, **kwargs)


def without_values(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put weights and buffers on `device`, floats in `dtype`; call it in a `FakeTensorMode`."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, old in kind.items():
                if old is None:
                    continue
                kept = dtype if old.is_floating_point() else old.dtype
                new = torch.empty_like(old, device=device, dtype=kept)  # with the same strides
                needs = old.requires_grad
                kind[name] = nn.Parameter(new, needs) if isinstance(old, nn.Parameter) else new  # type: ignore[index]
