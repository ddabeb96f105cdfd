"""Counts of what compiled modules do on a GPU, taken from tensors without values.

A module's graph goes through inductor's own passes, lowering and scheduler for an H100, and the
fused kernels are counted as inductor counts them (each buffer read and written once). No code is
generated. Where gradients are needed, AOTAutograd splits the graph with the default partitioner.
The backward graph runs as a whole, whichever of its gradients are asked for.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only
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

from benchmarks.traffic_count import CUDA, Count, CudaRules

aten = torch.ops.aten


def count_compiled(modules: Sequence[nn.Module], count: Count, fake: FakeTensorMode) -> None:
    """Count every call of each of `modules`, and its backward pass, as one graph compiled by
    inductor; calls that compile to the same graph share it.
    """
    graphs: dict[Any, Callable[..., Any]] = {}
    for module in modules:
        module.forward = partial(_call_compiled, module, module.forward, count, fake, graphs)  # type: ignore[method-assign]


def _call_compiled(
    module: nn.Module,
    original: Callable[..., Any],
    count: Count,
    fake: FakeTensorMode,
    graphs: dict[Any, Callable[..., Any]],
    *args: Any,
) -> Any:
    state = dict([*module.named_parameters(), *module.named_buffers()])
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]

    def function(weights: tuple[Tensor, ...], tensors: list[Tensor]) -> Any:
        whole = list(args)
        for place, tensor in zip(places, tensors, strict=True):
            whole[place] = tensor
        with _reparametrize_module(module, dict(zip(state, weights, strict=True))):
            return original(*whole)

    def compiler(inference: bool) -> Callable[[GraphModule, list[Any]], Callable[..., Any]]:
        return lambda graph, inputs: _counted(graph, inputs, count, fake, inference=inference)

    key = _graph_key(module, state, args)
    if key not in graphs:
        graphs[key] = aot_function(
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
        return graphs[key](tuple(state.values()), [args[i] for i in places])


def _graph_key(module: nn.Module, state: dict[str, Tensor], args: Any) -> Any:
    """All that the graph of a call depends on: settings of the parts, tensors' layouts, modes."""
    settings = [
        (type(part), name, value)
        for part in module.modules()
        for name, value in vars(part).items()
        if isinstance(value, int | float | str | tuple | None) and name != "name"
    ]
    layouts = [
        (x.shape, x.stride(), x.dtype, x.requires_grad) if isinstance(x, Tensor) else repr(x)
        for x in (*state.values(), *args)
    ]
    return (*settings, *state, *layouts, torch.is_grad_enabled())


def _partition(graph: GraphModule, inputs: Any, **options: Any) -> tuple[GraphModule, GraphModule]:
    _recursive_joint_graph_passes(graph)
    return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)


def _counted(
    graph: GraphModule, inputs: list[Any], count: Count, fake: FakeTensorMode, *, inference: bool
) -> Callable[..., Any]:
    """What runs in place of the compiled graph: the graph itself, on tensors without values."""
    kernels = inductor_kernels(graph, inputs, fake, inference=inference)

    def run(arguments: list[Any]) -> Any:
        for read, written, flop in kernels:
            count.add(read, written, flop)
        with _disable_current_modes(), fake:
            results = Interpreter(graph).run(*arguments)
        arguments.clear()
        return results

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def inductor_kernels(
    graph: GraphModule, inputs: list[Any], fake: FakeTensorMode, *, inference: bool
) -> list[tuple[int, int, int]]:
    """(bytes read, bytes written, FLOP) of the kernels that inductor makes for an H100."""
    graph = _on_cuda(graph)
    inputs = [_cuda_like(x) if isinstance(x, Tensor) else x for x in inputs]
    with ExitStack() as stack:
        # Else counters outside see what compiling does: a backward graph is compiled when first run
        stack.enter_context(_disable_current_modes())
        stack.enter_context(fake)
        _Propagate(graph).run(*inputs)
        stack.enter_context(_h100())
        stack.enter_context(V.set_fake_mode(fake))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        _recursive_post_grad_passes(graph, is_inference=inference)
        lowering = GraphLowering(graph, is_inference=inference, layout_opt=True)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            lowering._update_scheduler()
            return [
                (
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
    node = max(kernel.origins)  # others, before it in the graph, give its inputs
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return 0
    args, kwargs = tree_map_only(Node, lambda n: n.meta["val"], (node.args, node.kwargs))
    return flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])


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
