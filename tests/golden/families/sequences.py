"""Recurrent layers over whole sequences."""

import torch
import torch.nn.functional as F
from torch import _VF
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from formulas import case, digits, project, tensor

CELLS = {"rnn_tanh": (1, _VF.rnn_tanh), "rnn_relu": (1, _VF.rnn_relu), "lstm": (4, _VF.lstm), "gru": (3, _VF.gru)}


def run(op, x, weights, state, *, lengths=None, layers=1, bidirectional=False, bias=True):
    """Outputs [N, T, D * H] and final states [L * D, N, H] of sequences x [N, T, I]."""
    hx = tuple(state) if op == "lstm" else state[0]
    rest = [weights, bias, layers, 0.0, False, bidirectional]
    f = CELLS[op][1]
    if lengths is None:
        return f(x, hx, *rest, True)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    turned = [s.index_select(1, order) for s in state]
    hx = tuple(turned) if op == "lstm" else turned[0]
    y, *states = f(packed.data, packed.batch_sizes, hx, *rest)
    y = torch.nn.utils.rnn.PackedSequence(y, packed.batch_sizes, order, back)
    y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    return (y, *(s.index_select(1, back) for s in states))


def sequences():
    """One layer of torch.nn.RNN, LSTM or GRU over input 0, [N, T, I].

    The other inputs are `weight_ih`, `weight_hh` and, with "bias", `bias_ih`, `bias_hh`; with "bidirectional" the same
    again for the reverse direction; with "start" the states [D, N, H] (h, then c). "lengths" may be null. Output 0
    is the sequence of outputs, then come the final states [D, N, H]; with "output" k > 0 that one alone.
    """
    for op, (gates, _) in CELLS.items():
        for n, t, i, h, bias, start, lengths, both, output in (
            (2, 3, 3, 4, True, False, None, False, 0),
            (3, 4, 2, 3, True, True, [2, 4, 1], False, 0),
            (2, 3, 2, 3, False, True, None, True, 0),
            (3, 3, 2, 2, True, True, [3, 1, 2], True, 1),
            (2, 4, 1, 5, True, True, [3, 4], False, 2 if op == "lstm" else 1),
        ):
            directions = 2 if both else 1
            own = [[gates * h, i], [gates * h, h]] + ([[gates * h], [gates * h]] if bias else [])
            states = [[directions, n, h]] * (2 if op == "lstm" else 1) if start else []
            params = {"bias": bias, "start": start, "lengths": lengths, "bidirectional": both, "output": output}

            def f(x, *rest, op=op, k=len(own) * directions, bias=bias, both=both, lengths=lengths, output=output):
                state = rest[k:] or [torch.zeros(2 if both else 1, x.shape[0], rest[1].shape[1], dtype=x.dtype)] * 2
                made = run(op, x, list(rest[:k]), state, lengths=lengths, bidirectional=both, bias=bias)
                return made[output] if output else made

            yield case(op, params, [[n, t, i]] + own * directions + states, f)


def recurrent():
    """Whole torch.nn.RNN, LSTM and GRU of several layers over padded batches with "lengths".

    Input 0 is [N, T, I], then come the parameters "names" as PyTorch orders them, then the states [L * D, N, H].
    Outputs: those of the last layer [N, T, D * H], then the final states. As in `network`, `gradients` are
    projections: sum(weight(i) * g[i]) for each parameter.
    """
    for op, layers, both, lengths in (
        ("LSTM", 2, True, [4, 2, 3]),
        ("GRU", 3, False, [1, 4, 4]),
        ("RNN", 2, True, [3, 4, 1]),
    ):
        n, t, i, h = 3, 4, 2, 3
        module = getattr(torch.nn, op)(i, h, layers, bidirectional=both, batch_first=True)
        names, shapes = zip(*((name, list(p.shape)) for name, p in module.named_parameters()))
        states = [[layers * (2 if both else 1), n, h]] * (2 if op == "LSTM" else 1)
        shapes = [[n, t, i], *shapes, *states]
        inputs = [tensor(k, s).requires_grad_() for k, s in enumerate(shapes)]
        own = inputs[1 : 1 + len(names)]
        key = "rnn_tanh" if op == "RNN" else op.lower()
        made = run(
            key, inputs[0], own, inputs[1 + len(names) :], lengths=lengths, layers=layers, bidirectional=both
        )
        project(made[0]).backward()
        yield {
            "op": op,
            "params": {
                "names": names,
                "hidden": h,
                "layers": layers,
                "bidirectional": both,
                "lengths": lengths,
            },
            "inputs": shapes,
            "outputs": [digits(o) for o in made],
            "gradients": digits(torch.stack([project(x.grad) for x in own])),
        }


def attention():
    """`attention` takes queries, keys and values, "causal", "scale" (may be null) and a "mask" (may be null) of ones
    and zeros, row-major, [L, S]; input 3, when there is one, is added to the scores.
    """
    for lead, (l, s, e, v), causal, scale, mask, bias in (
        ([2, 2], (3, 4, 3, 2), False, None, None, False),
        ([2], (4, 4, 3, 3), True, None, None, False),
        ([2], (3, 5, 2, 3), True, 0.7, None, False),
        ([3], (2, 4, 3, 2), False, None, [1, 0, 1, 1, 0, 1, 1, 0], False),
        ([2], (3, 4, 2, 2), False, 0.5, None, True),
    ):
        params = {"causal": causal, "scale": scale, "mask": mask}
        shapes = [[*lead, l, e], [*lead, s, e], [*lead, s, v]] + ([[l, s]] if bias else [])

        def f(q, k, v, b=None, causal=causal, scale=scale, mask=mask):
            at = b if mask is None else torch.tensor(mask).reshape(q.shape[-2], k.shape[-2]).bool()
            return F.scaled_dot_product_attention(q, k, v, at, 0.0, causal, scale=scale)

        yield case("attention", params, shapes, f, frozen=(3,))


def multihead():
    """torch.nn.MultiheadAttention with "heads" over inputs 0 to 2, [N, L, E] and [N, S, E]; then come in_proj_weight,
    in_proj_bias, out_proj.weight, out_proj.bias. In "hidden" (may be null), row-major [N, S], a one hides a key.
    """
    for n, l, s, e, heads, hidden in ((2, 3, 4, 6, 3, None), (2, 2, 3, 4, 2, [0, 0, 1, 0, 1, 1])):
        params = {"heads": heads, "hidden": hidden}
        shapes = [[n, l, e], [n, s, e], [n, s, e], [3 * e, e], [3 * e], [e, e], [e]]

        def f(q, k, v, w, b, ow, ob, heads=heads, hidden=hidden):
            at = None if hidden is None else torch.tensor(hidden).reshape(q.shape[0], k.shape[1]).bool()
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            e = q.shape[-1]
            made = F.multi_head_attention_forward(
                q, k, v, e, heads, w, b, None, None, False, 0.0, ow, ob, False, at, need_weights=False
            )
            return made[0].transpose(0, 1)

        yield case("multihead", params, shapes, f)


FAMILIES = [sequences, recurrent, attention, multihead]
