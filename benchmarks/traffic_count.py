"""Counts of what a pass does on a GPU, taken from tensors with a shape, a type and a device but no
values: no GPU is needed, and none is asked.

Eager: every operation that is no view is one kernel; it reads each input and writes each output
once. A convolution's backward pass is one kernel for each gradient. What a kernel copies inside
itself, such as a change of memory format, is not seen.

Compiled: the graph goes through inductor's own passes, lowering and scheduler for an H100, and the
fused kernels are counted as inductor counts them (each buffer read and written once). No code is
generated. Where gradients are needed, AOTAutograd splits the graph with the default partitioner.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what PyTorch itself imports
    from torch._inductor.compile_fx import (
        _recursive_joint_graph_passes,
        _recursive_post_grad_passes,
    )
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.ir import MultiOutput
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V

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
    by_name: dict[str, int] = field(default_factory=dict)
    """Bytes read and written, by operation."""

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written

    def add(self, name: str, read: int, written: int, flop: int = 0) -> None:
        """One kernel."""
        self.kernels += 1
        self.read += read
        self.written += written
        self.flop += flop
        self.seconds += max(flop / self.flops_per_second, (read + written) / self.bytes_per_second)
        self.by_name[name] = self.by_name.get(name, 0) + read + written


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
        name = packet.__name__
        if packet is aten.convolution_backward:
            self._convolution_backward(args, result)
            return
        flop = 0
        if packet in flop_registry:
            flop = flop_registry[packet](*args, **kwargs, out_val=result)
        inputs = tree_leaves((args, kwargs))
        if packet in _OVERWRITES:
            inputs = inputs[1:]
        self.count.add(name, size_of(inputs), size_of(tree_leaves(result)), flop)

    def _convolution_backward(self, args: Any, result: Any) -> None:
        grad, x, weight = args[:3]
        flop = flop_registry[aten.convolution_backward](*args, out_val=result)
        wanted = sum(r is not None for r in result[:2])
        for output, inputs in zip(result, ((grad, weight), (grad, x), (grad,)), strict=True):
            if output is not None:
                share = 0 if output.ndim == 1 else flop // wanted
                self.count.add("convolution_backward", size_of(inputs), size_of([output]), share)


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
        if func is F.scaled_dot_product_attention and args[0].is_cuda:
            q, k, v = args
            return aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]
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


def count_compiled(module: nn.Module, count: Count, fake: FakeTensorMode) -> None:
    """Count every call of `module`, and its backward pass, as one graph compiled by inductor."""
    original = module.forward

    def forward(*args: Any) -> Any:
        state = [*module.named_parameters(), *module.named_buffers()]
        names, weights = zip(*state, strict=True)
        places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]

        def function(weights: tuple[Tensor, ...], tensors: list[Tensor]) -> Any:
            whole = list(args)
            for place, tensor in zip(places, tensors, strict=True):
                whole[place] = tensor
            with _reparametrize_module(module, dict(zip(names, weights, strict=True))):
                return original(*whole)

        def compiler(inference: bool) -> Callable[[GraphModule, list[Any]], Callable[..., Any]]:
            return lambda graph, inputs: _counted(graph, inputs, count, fake, inference=inference)

        compiled = aot_function(
            function,
            fw_compiler=compiler(False),  # type: ignore[arg-type]
            inference_compiler=compiler(True),  # type: ignore[arg-type]
            partition_fn=_partition,
            decompositions=select_decomp_table(),
        )
        with ExitStack() as stack:
            stack.enter_context(_disable_current_modes())
            stack.enter_context(fake)
            stack.enter_context(CudaRules())
            stack.enter_context(patch("torch.compiler._is_compiling_flag", True))
            return compiled(weights, [args[i] for i in places])

    module.forward = forward  # type: ignore[method-assign]


def _partition(graph: GraphModule, inputs: Any, **options: Any) -> tuple[GraphModule, GraphModule]:
    _recursive_joint_graph_passes(graph)
    return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)


def _counted(
    graph: GraphModule, inputs: list[Any], count: Count, fake: FakeTensorMode, *, inference: bool
) -> Callable[..., Any]:
    """What runs in place of the compiled graph: the graph itself, on tensors without values."""
    kernels = inductor_kernels(graph, inputs, fake, inference=inference)

    def run(arguments: list[Any]) -> Any:
        for name, read, written, flop in kernels:
            count.add(name, read, written, flop)
        with _disable_current_modes(), fake:
            results = Interpreter(graph).run(*arguments)
        arguments.clear()
        return results

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def inductor_kernels(
    graph: GraphModule, inputs: list[Any], fake: FakeTensorMode, *, inference: bool
) -> list[tuple[str, int, int, int]]:
    """(name, bytes read, bytes written, FLOP) of the kernels that inductor makes for an H100."""
    graph = _on_cuda(graph)
    inputs = [_cuda_like(x) if isinstance(x, Tensor) else x for x in inputs]
    with _disable_current_modes(), fake:
        _Propagate(graph).run(*inputs)
    with _h100(), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
        _recursive_post_grad_passes(graph, is_inference=inference)
        lowering = GraphLowering(graph, is_inference=inference, layout_opt=True)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            lowering._update_scheduler()
            return [
                (
                    type(node.node).__name__ if node.is_extern() else "fused",
                    node.get_read_buffer_sizes(),
                    node.get_write_buffer_sizes(),
                    _flop(node.node) if node.is_extern() else 0,
                )
                for node in lowering.scheduler.nodes
                if not isinstance(node, NopKernelSchedulerNode)
                and not isinstance(node.node, MultiOutput)
            ]


def _flop(kernel: Any) -> int:
    """Of a convolution or matrix product that inductor calls, else 0."""
    for node in kernel.origins:
        packet = getattr(node.target, "overloadpacket", None)
        if packet in flop_registry:
            args, kwargs = tree_map_only(Node, lambda n: n.meta["val"], (node.args, node.kwargs))
            return flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])
    return 0


def _on_cuda(graph: GraphModule) -> GraphModule:
    """A copy that makes its tensors on the GPU."""

    def move(value: Any) -> Any:
        return tree_map_only(torch.device, lambda _: CUDA, value)

    copy = GraphModule(graph, graph.graph.__class__())
    copy.graph.graph_copy(graph.graph, mapping := {})
    output = next(node for node in graph.graph.nodes if node.op == "output")
    copy.graph.output(torch.fx.map_arg(output.args[0], lambda node: mapping[node]))
    for node in copy.graph.nodes:
        node.args, node.kwargs = move(node.args), move(node.kwargs)
        if node.target is aten.view.default:  # memory formats differ between the devices
            node.target = aten.reshape.default
    copy.recompile()
    return copy


def _cuda_like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)


class _Propagate(Interpreter):
    """Notes each result beside its node, where inductor looks for it."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result


@contextmanager
def _h100() -> Iterator[None]:
    """What inductor asks of a device."""
    values = {
        "multi_processor_count": 132,
        "major": 9,
        "regs_per_multiprocessor": 65536,
        "max_threads_per_multi_processor": 2048,
        "max_threads_per_block": 1024,
        "warp_size": 32,
    }
    properties = DeviceProperties(type="cuda", index=0, cc=90, **values)
    described = SimpleNamespace(**values, minor=0, total_memory=80 * 2**30, name="H100")
    with ExitStack() as stack:
        for target, value in (
            ("torch._inductor.scheduler.has_triton", lambda: True),
            ("torch.cuda.get_device_capability", lambda device=None: (9, 0)),
            ("torch.cuda.get_device_properties", lambda device=None: described),
        ):
            stack.enter_context(patch(target, value))
        create = classmethod(lambda cls, device: properties)
        stack.enter_context(patch.object(DeviceProperties, "create", create))
        yield
