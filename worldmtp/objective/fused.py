"""The losses of all depths without their logits: output layer and loss in one step, chunk by chunk of valid positions.

The logits of a batch are by far its largest tensor, and MTP would multiply them by the number of depths. Here one chunk
of one depth's logits lives at a time, beside one chunk of the teacher's. Nothing is computed again in the backward pass
either: as soon as a chunk's loss is known, so is its gradient with respect to the logits, which is multiplied at once
into the gradients of the latents and of the output layer. Those wait for the backward pass, which scales them by the
gradient that comes in. One buffer is held for each distinct output weight, so K depths on one LM head cost one.

The table of gradients is in ``worldmtp.objective.token_losses``. End to end (Bebop, arXiv 2606.12370),

    L_e2e = sum_t (number of valid depths at t - sum_k prod_{j<=k} a_j(t)),   a_j = 1 - tv_j,   a_j = 0 where invalid,

couples the depths: a pass without gradients finds all a_j, and the product's derivative by a_j then weighs tv_j in the
pass of the other losses. It is the only loss that computes logits twice. A valid depth beyond an invalid one adds its
constant 1 and no gradient.

Left out: label smoothing, a top-k approximation of the teacher, gradients of gradients, sharded output layers, and
output layers that are more than weight and bias (adapters, quantised weights): those are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worldmtp.objective.objective import LossTerms
from worldmtp.objective.sweep import DepthSweep, SweptDepth, Transform, Unembedding
from worldmtp.objective.token_losses import precise_dtype


@dataclass(frozen=True)
class Teacher:
    """The trunk as a teacher of the given depths.

    For a depth with offset o at position t, its distribution is the trunk's of the next token at t+o-1, and its latent
    ``hidden[:, t + o - 1]``. With ``detach=False`` gradients flow into ``hidden``, never into ``output_layer``.
    """

    hidden: Float[Tensor, "batch time hidden"]
    output_layer: nn.Linear
    offsets: tuple[int, ...]
    detach: bool = True


@dataclass(frozen=True)
class DepthSums:
    """Detached sums over each depth's valid targets, and how many those are.

    ``accepted`` sums sum_v min(p, q), so ``tv`` is ``counts - accepted``. ``kl``, ``tv``, ``accepted`` and ``latent``
    are measured where there is a teacher and their own term or ``with_acceptance`` asks; elsewhere they are zero.
    """

    ce: Float[Tensor, " depth"]
    kl: Float[Tensor, " depth"]
    tv: Float[Tensor, " depth"]
    latent: Float[Tensor, " depth"]
    top1_hits: Int[Tensor, " depth"]
    accepted: Float[Tensor, " depth"]
    counts: Int[Tensor, " depth"]


def summed_depth_losses(
    latents: Sequence[Float[Tensor, "batch time hidden"]],
    output_layers: Sequence[nn.Linear],
    targets: Int[Tensor, "batch time depth"],
    mask: Bool[Tensor, "batch time depth"],
    *,
    weights: Sequence[float | Float[Tensor, ""]],
    terms: LossTerms,
    teacher: Teacher | None,
    transform: Transform | None = None,
    detach_output: Sequence[bool],
    chunk_size: int,
    with_acceptance: bool,
) -> tuple[Float[Tensor, ""], DepthSums]:
    """Return the weighted sum of the given depths' losses over their valid targets, and the sums it is made of.

        L = sum_k weights[k] sum_valid (ce CE + kl KL + tv TV + latent SmoothL1 + nla NLA + lk_hybrid LK)_k
            + e2e_tv mean(weights) L_e2e

    Sums, not means: gradient accumulation is exact when the weights hold one over the whole batch's number of targets.
    ``transform`` maps logits to logits, of student and teacher (soft caps, scales); a function of each token alone.
    A depth with ``detach_output`` gives its output layer no gradient, and spends no time on one. ``with_acceptance``
    measures what the teacher would accept even if no term needs it. Without valid targets the loss is zero, and its
    gradients are. Products are computed in the weights' dtype, or in autocast's; all else in float32, or float64.

    Raises:
        TypeError: an output layer is not a plain linear one.
        ValueError: a length, shape, dtype or number that does not fit; a term that needs a teacher has none; a valid
            target lies beyond the teacher's states.
    """
    _check_lengths(latents, output_layers, targets, mask, weights, detach_output)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} positions are unembedded at a time; it must be at least 1.")
    if teacher is None and terms.need_teacher:
        raise ValueError(f"{terms} compares with a teacher and none was given; pass one, or set those terms to zero.")
    if teacher is not None:
        _check_teacher(teacher, latents, output_layers if terms.on_teacher_logits or with_acceptance else ())
        if not (terms.need_teacher or with_acceptance):
            teacher = None
    layers = [*output_layers] if teacher is None else [*output_layers, teacher.output_layer]
    parameters = {id(layer): _parameters(layer) for layer in layers}  # once: a parametrised weight is new at each look
    rows = _valid_rows(mask, None if teacher is None else teacher.offsets)
    depths = [
        SweptDepth(
            rows=rows[k],
            labels=targets[:, :, k].reshape(-1),
            unembedding=parameters[id(layer)],
            detach_output=detach_output[k],
            weight=_constant(weights[k]),
            ahead=0 if teacher is None else teacher.offsets[k] - 1,
        )
        for k, layer in enumerate(output_layers)
    ]
    learned = {
        id(parameter): parameter
        for depth in depths
        if not depth.detach_output
        for parameter in depth.unembedding
        if parameter is not None
    }
    sweep = DepthSweep(
        depths=depths,
        mask=mask,
        terms=terms,
        teacher_unembedding=None if teacher is None else parameters[id(teacher.output_layer)],
        transform=transform,
        chunk_size=chunk_size,
        measure_all=with_acceptance,
        needs_gradient=torch.is_grad_enabled(),
        product_dtype=_product_dtype(latents, depths, teacher),
        places={key: len(depths) + i for i, key in enumerate(learned)},
    )
    inputs = [*latents, *learned.values()]
    if teacher is not None:
        inputs.append(teacher.hidden.detach() if teacher.detach else teacher.hidden)
    loss, sums, top1_hits = _SummedLosses.apply(sweep, *inputs)
    ce, kl, tv, latent, accepted = sums
    counts = mask.sum(dim=(0, 1))
    return loss, DepthSums(ce=ce, kl=kl, tv=tv, latent=latent, top1_hits=top1_hits, accepted=accepted, counts=counts)


class _SummedLosses(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass scales the gradients."""

    @staticmethod
    def forward(ctx: Any, sweep: DepthSweep, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        needed = [sweep.needs_gradient and needs for needs in ctx.needs_input_grad[1:]]
        gradients = [
            torch.zeros(value.shape, dtype=_held_dtype(value, i < len(sweep.depths)), device=value.device)
            if needed[i]
            else None
            for i, value in enumerate(inputs)
        ]
        with torch.autocast(inputs[0].device.type, enabled=False):
            loss, sums, top1_hits = sweep.run(inputs, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [value.dtype for value in inputs]
        ctx.mark_non_differentiable(sums, top1_hits)
        return loss, sums, top1_hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # Not in place: with retain_graph=True the same gradients are scaled a second time.
        scaled = [
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *scaled


def _held_dtype(value: Tensor, is_latent: bool) -> torch.dtype:
    # Rows of a latent are written once, so bfloat16 loses nothing there; float16 would, see DepthSweep.narrowed. In
    # other buffers chunks and depths add up, which loses in any half precision.
    return value.dtype if is_latent and value.dtype != torch.float16 else precise_dtype(value.dtype)


def _parameters(layer: nn.Linear) -> Unembedding:
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise TypeError(
            f"an output layer is a {type(layer).__name__}; only weight and bias of a torch.nn.Linear are read here. "
            "Merge its adapter or dequantise it, or compute its logits and a loss of your own."
        )
    return layer.weight, layer.bias


def _constant(weight: float | Tensor) -> float | Tensor:
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ValueError("a depth's weight requires a gradient, which it would not get; detach it.")
    return weight


def _valid_rows(mask: Tensor, offsets: Sequence[int] | None) -> list[Tensor | int]:
    """Return each depth's valid positions of batch times time, or how many if all are.

    A chunk is as large as what is valid of it, so the host has to know how much is: it reads that once for all depths.
    """
    num_rows, length, num_depths = mask.shape
    counts = mask.sum(dim=(0, 1))
    if offsets is not None:
        beyond = [mask[:, max(length - offset + 1, 0) :, k].sum() for k, offset in enumerate(offsets)]
        counts = torch.cat([counts, torch.stack(beyond)])
    known: list[int] = counts.tolist()
    for k, offset in enumerate(offsets or ()):
        if known[num_depths + k]:
            raise ValueError(
                f"a valid target of the depth with offset={offset} has its teacher at a position beyond the {length} "
                "there are; mask the targets that lie after the end."
            )
    return [
        size
        if (size := known[k]) == num_rows * length
        else torch.nonzero_static(mask[:, :, k].reshape(-1), size=size).squeeze(-1)
        for k in range(num_depths)
    ]


def _product_dtype(latents: Sequence[Tensor], depths: Sequence[SweptDepth], teacher: Teacher | None) -> torch.dtype:
    dtype, device = latents[0].dtype, latents[0].device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    others = [*latents, *(depth.unembedding[0] for depth in depths)]
    if teacher is not None:
        others += [teacher.hidden, teacher.output_layer.weight]
    found = {str(value.dtype) for value in others}
    if len(found) > 1:
        raise ValueError(
            f"latents and output layers have the dtypes {sorted(found)}; cast them, or use torch.autocast."
        )
    return dtype


def _check_lengths(
    latents: Sequence[Tensor],
    output_layers: Sequence[nn.Linear],
    targets: Tensor,
    mask: Tensor,
    weights: Sequence[float | Tensor],
    detach_output: Sequence[bool],
) -> None:
    found = {
        "latents": len(latents),
        "output_layers": len(output_layers),
        "targets": targets.shape[-1],
        "mask": mask.shape[-1],
        "weights": len(weights),
        "detach_output": len(detach_output),
    }
    if len(set(found.values())) > 1 or not latents:
        raise ValueError(f"depths were given as {found}; they must agree, and be at least one.")
    for k, latent in enumerate(latents):
        if latent.shape[:2] != targets.shape[:2] or latent.shape != latents[0].shape or mask.shape != targets.shape:
            raise ValueError(
                f"latents[{k}] has the shape {tuple(latent.shape)}, latents[0] {tuple(latents[0].shape)}, targets "
                f"{tuple(targets.shape)}, mask {tuple(mask.shape)}; batch, time and hidden must agree."
            )


def _check_teacher(teacher: Teacher, latents: Sequence[Tensor], compared: Sequence[nn.Linear]) -> None:
    if len(teacher.offsets) != len(latents) or min(teacher.offsets) < 1:
        raise ValueError(
            f"the teacher has offsets={teacher.offsets}; give each of the {len(latents)} depths one, from 1 on."
        )
    if teacher.hidden.shape != latents[0].shape:
        raise ValueError(
            f"the teacher's states have the shape {tuple(teacher.hidden.shape)}, the latents "
            f"{tuple(latents[0].shape)}; they must agree."
        )
    vocab_sizes, expected = [len(layer.weight) for layer in compared], len(teacher.output_layer.weight)
    if any(size != expected for size in vocab_sizes):
        raise ValueError(
            f"the output layers have the vocabularies {vocab_sizes} and the teacher {expected}; distributions are "
            "compared over one vocabulary."
        )
