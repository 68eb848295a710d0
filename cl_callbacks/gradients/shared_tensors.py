"""Per-sample cotangents of tensors that all samples share, such as position embeddings and class tokens.

A table of positions is looked up once and added to every sample, and a class token or a table that is a plain
parameter is added or expanded. The cotangent of the shared tensor is a sum over samples, but that of the
result of the addition or expansion has one entry per sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from cl_callbacks.gradients.graph import graph_nodes
from cl_callbacks.gradients.layer_gradients import Itself, has_rule
from cl_callbacks.gradients.precision import Precision
from cl_callbacks.gradients.recorded_calls import RecordedCall


def calls_by_sample(
    outputs: Tensor, calls: Sequence[RecordedCall], plain: Iterable[nn.Parameter]
) -> list[RecordedCall]:
    """Replaces calls whose result all samples share by calls with one entry per sample.

    Args:
        outputs: of the network, ``(N, ...)``.
        calls: of modules while the outputs were computed.
        plain: parameters that none of these modules owns; those that samples share get a call of
            :class:`~cl_callbacks.gradients.layer_gradients.Itself`.

    Returns:
        Calls with inputs and edges for ``N`` samples; calls whose result is used otherwise are unchanged.

    Example:
        >>> import torch
        >>> from cl_callbacks.gradients.recorded_calls import output_cotangents, recorded_calls
        >>> table = nn.Embedding(5, 2)
        >>> with recorded_calls([table]) as calls:
        ...     outputs = torch.zeros(3, 5, 2) + table(torch.arange(5))
        >>> [deltas] = output_cotangents(outputs, calls_by_sample(outputs, calls, []), outputs)
        >>> deltas[0].shape
        torch.Size([3, 5, 2])
    """
    # The "call" of a plain parameter is that of `Itself`; its edge is where its gradient accumulates.
    now = Precision.now(outputs.device.type)
    calls = [
        *calls,
        *(RecordedCall(Itself(p), ((p.detach()[None],), {}), [get_gradient_edge(p)], now) for p in plain),
    ]
    sources = [_source(call) for call in calls]
    users: dict[tuple[Node, int], list[Node]] = {s: [] for s in sources if s is not None}
    for node in graph_nodes(outputs):
        for following in node.next_functions:
            if following in users:
                users[following].append(node)
    found: list[RecordedCall] = []
    for call, source in zip(calls, sources, strict=True):
        expanded = [] if source is None else [_expanded(call, source, u, len(outputs)) for u in users[source]]
        told_apart = [each for each in expanded if each is not None]
        found += told_apart if expanded and len(told_apart) == len(expanded) else [call]
    return found


def _source(call: RecordedCall) -> tuple[Node, int] | None:
    """Graph node and output number of a call's result, if a layer with a rule was called with one tensor."""
    (args, kwargs), edge = call.inputs, call.edges[0]
    if has_rule(call.module) and len(args) == 1 and not kwargs and edge is not None:
        return edge.node, edge.output_nr
    return None


def _expanded(call: RecordedCall, source: tuple[Node, int], user: Node, samples: int) -> RecordedCall | None:
    """The call with one entry per sample, if ``user`` adds its result to each sample or expands it."""
    if user.name() not in ("AddBackward0", "ExpandBackward0") or getattr(user, "_saved_alpha", 1) != 1:
        return None
    (x,), (node, number) = call.inputs[0], source
    shape = tuple(node._input_metadata[number].shape)
    expanded = tuple(user._input_metadata[0].shape)
    if expanded == (samples, *shape):
        x = x.expand(samples, *x.shape)
    elif x.shape[:1] == shape[:1] == (1,) and expanded == (samples, *shape[1:]):
        x = x.expand(samples, *x.shape[1:])
    else:
        return None
    return call._replace(inputs=((x,), {}), edges=[GradientEdge(user, 0)])
