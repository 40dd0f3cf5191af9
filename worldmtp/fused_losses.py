"""The losses of all depths without their logits: output layer and loss in one step, chunk by chunk of valid positions.

The logits of a batch are by far its largest tensor, and MTP would multiply them by the number of depths. Here one chunk
of one depth's logits lives at a time, beside one chunk of the teacher's. Nothing is computed again in the backward pass
either: as soon as a chunk's loss is known, so is its gradient with respect to the logits, which is multiplied at once
into the gradients of the latents and of the output layer. Those wait for the backward pass, which scales them by the
gradient that comes in. One buffer is held for each distinct output weight, so K depths on one LM head cost one.

With q the student's distribution, p the teacher's, y the label and [.] an indicator, the gradients by the logits are

    ce  -log q_y                    q - [v = y]
    kl  sum_v p (log p - log q)     q - p                                      teacher: p (log p - log q - kl)
    tv  1 - sum_v min(p, q)         q (s - [q < p]),  s = sum_v q [q < p]      teacher: p (s' - [p < q]), s' alike

where p = q, tv has a kink and neither counts as smaller. End to end (Bebop, arXiv 2606.12370),

    L_e2e = sum_t (number of valid depths at t - sum_k prod_{j<=k} a_j(t)),   a_j = 1 - tv_j,   a_j = 0 where invalid,

couples the depths: a pass without gradients finds all a_j, and the product's derivative by a_j then weighs tv_j in the
pass of the other losses. It is the only loss that computes logits twice. A valid depth beyond an invalid one adds its
constant 1 and no gradient.

Left out: label smoothing, a top-k approximation of the teacher, gradients of gradients, sharded output layers, and
output layers that are more than weight and bias (adapters, quantised weights): those are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worldmtp.divergences import acceptance_gradient, expected_accepted_length, smooth_l1_per_token

Transform = Callable[[Tensor], Tensor]
Rows = slice | Tensor
Unembedding = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class LossTerms:
    """Coefficients of what one depth's loss of one token is made of.

    ``ce``, ``kl``, ``tv`` and ``latent`` are summed for each depth and multiplied by its weight. ``e2e_tv`` couples the
    depths, so it is multiplied by the mean of their weights.
    """

    ce: float = 1.0
    kl: float = 0.0
    tv: float = 0.0
    e2e_tv: float = 0.0
    latent: float = 0.0
    latent_beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.latent_beta > 0:
            raise ValueError(f"latent_beta={self.latent_beta} is where smooth L1 turns linear; it must be positive.")

    @property
    def on_teacher_logits(self) -> bool:
        """Whether a term compares logits with a teacher's."""
        return bool(self.kl or self.tv or self.e2e_tv)

    @property
    def on_logits(self) -> bool:
        """Whether a term has a gradient by the logits."""
        return bool(self.ce) or self.on_teacher_logits

    @property
    def need_teacher(self) -> bool:
        """Whether a term compares anything with a teacher."""
        return bool(self.latent) or self.on_teacher_logits


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
    """Weighted sum of the given depths' losses over their valid targets, and the sums it is made of.

        L = sum_k weights[k] sum_valid (ce CE + kl KL + tv TV + latent SmoothL1)_k + e2e_tv mean(weights) L_e2e

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
    depths = [
        _Depth(
            rows=_valid_rows(mask[:, :, k], None if teacher is None else teacher.offsets[k]),
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
    sweep = _Sweep(
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
    def forward(ctx: Any, sweep: "_Sweep", *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


@dataclass(frozen=True)
class _Depth:
    """What is known of a depth before its logits; ``rows`` of batch times time that are valid, or how many if all."""

    rows: Tensor | int
    labels: Tensor
    unembedding: Unembedding
    detach_output: bool
    weight: float | Tensor
    ahead: int

    def chunks(self, chunk_size: int) -> Iterator[tuple[Rows, Rows]]:
        """Valid positions, ``chunk_size`` at a time, and where the teacher stands for them."""
        if isinstance(self.rows, int):  # slices are views; nothing is copied
            for start in range(0, self.rows, chunk_size):
                rows = slice(start, min(start + chunk_size, self.rows))
                yield rows, rows  # all positions are valid, so the teacher is not ahead: that was checked
        else:
            for chosen in self.rows.split(chunk_size) if len(self.rows) else ():
                yield chosen, chosen + self.ahead


@dataclass(frozen=True)
class _Sweep:
    """One evaluation of all depths. ``places`` tells at which input a parameter stands, by its id."""

    depths: list[_Depth]
    mask: Tensor
    terms: LossTerms
    teacher_unembedding: Unembedding | None
    transform: Transform | None
    chunk_size: int
    measure_all: bool
    needs_gradient: bool
    product_dtype: torch.dtype
    places: dict[int, int]
    buffers: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    operands: dict[int, Tensor] = field(default_factory=dict)

    def run(self, inputs: Sequence[Tensor], gradients: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the sums of ce, kl, tv, latent and accepted, and the hits; adds to ``gradients``."""
        num_depths, device, dtype = len(self.depths), inputs[0].device, _precise(inputs[0].dtype)
        states = [_flat(value) for value in inputs]
        flat_gradients = [None if gradient is None else _flat(gradient) for gradient in gradients]
        loss = torch.zeros((), dtype=dtype, device=device)
        sums = torch.zeros(5, num_depths, dtype=dtype, device=device)
        top1_hits = torch.zeros(num_depths, dtype=torch.int64, device=device)
        tv_weights = None
        if self.terms.e2e_tv:
            coef = self.terms.e2e_tv * (sum(depth.weight for depth in self.depths) / num_depths)
            acceptance = self.acceptance(states, dtype)
            loss += coef * (self.mask.sum() - expected_accepted_length(acceptance).sum())
            tv_weights = coef * acceptance_gradient(acceptance)
        for k, depth in enumerate(self.depths):
            for rows, teacher_rows in depth.chunks(self.chunk_size):
                tv_weight = None if tv_weights is None else tv_weights[rows, k, None]
                self.add_chunk(k, rows, teacher_rows, states, flat_gradients, tv_weight, sums[:, k], top1_hits[k])
            terms = self.terms
            composed = terms.ce * sums[0, k] + terms.kl * sums[1, k] + terms.tv * sums[2, k] + terms.latent * sums[3, k]
            loss += depth.weight * composed
        return loss, sums, top1_hits

    def add_chunk(
        self,
        k: int,
        rows: Rows,
        teacher_rows: Rows,
        states: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        tv_weight: Tensor | None,
        sums: Tensor,
        top1_hits: Tensor,
    ) -> None:
        """Adds one chunk's values to ``sums`` and ``top1_hits``, and what follows from them to ``gradients``."""
        depth, terms = self.depths[k], self.terms
        latent, latent_gradient = states[k][rows], gradients[k]
        has_teacher = self.teacher_unembedding is not None
        teacher_state = states[-1][teacher_rows] if has_teacher else None
        teacher_gradient = gradients[-1] if has_teacher else None
        by_weight, by_bias = (
            None if parameter is None or depth.detach_output else gradients[self.places[id(parameter)]]
            for parameter in depth.unembedding
        )
        by_student = terms.on_logits and any(g is not None for g in (latent_gradient, by_weight, by_bias))
        by_teacher = terms.on_teacher_logits and teacher_gradient is not None

        logits, pull = self.unembed(depth.unembedding, latent, "student", by_student)
        teacher_logits: Tensor | None = None
        teacher_pull: Transform = _unchanged
        if (
            self.teacher_unembedding is not None
            and teacher_state is not None
            and (self.measures_kl or self.measures_acceptance)
        ):
            teacher_logits, teacher_pull = self.unembed(self.teacher_unembedding, teacher_state, "teacher", by_teacher)
        tokens = _Tokens(logits, depth.labels[rows].long(), teacher_logits, self.buffer("probs", logits.shape, logits))
        if teacher_logits is not None and self.measures_kl:
            sums[1] += tokens.kl.sum()
        if teacher_logits is not None and self.measures_acceptance:
            accepted = tokens.accepted.sum()
            sums[2] += len(tokens.labels) - accepted
            sums[4] += accepted
        sums[0] += tokens.ce.sum()
        top1_hits += tokens.top1_hits()
        if self.measures_latent and teacher_state is not None:
            sums[3] += smooth_l1_per_token(latent, teacher_state, terms.latent_beta).sum()

        weights = _Weights.of(terms, depth.weight, tv_weight)
        by_latent = by_state = None
        if by_teacher and self.teacher_unembedding is not None:
            gradient = teacher_pull(tokens.teacher_gradient(weights))
            by_state = self.product(*self.narrowed(gradient), self.teacher_unembedding[0])
        if by_student:
            gradient = pull(tokens.student_gradient_(weights))
            narrow, scale = self.narrowed(gradient)
            if latent_gradient is not None:
                by_latent = self.product(narrow, scale, depth.unembedding[0])
            if by_weight is not None:
                self.add_product_(by_weight, narrow, scale, latent)
            if by_bias is not None:
                by_bias += gradient.sum(dim=0)
        if terms.latent and teacher_state is not None:
            direct = depth.weight * terms.latent * _smooth_l1_gradient(latent, teacher_state, terms.latent_beta)
            by_latent = direct if by_latent is None else by_latent + direct
            by_state = -direct if by_state is None else by_state - direct
        if latent_gradient is not None and by_latent is not None:
            latent_gradient[rows] = by_latent.to(latent_gradient.dtype)
        if teacher_gradient is not None and by_state is not None:
            teacher_gradient[teacher_rows] += by_state  # the rows of one depth are distinct

    def acceptance(self, states: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Probability that a depth's draft is accepted at a position; zero where invalid, which ends the product."""
        assert self.teacher_unembedding is not None  # e2e_tv was checked to have a teacher
        acceptance = torch.zeros(len(states[0]), len(self.depths), dtype=dtype, device=states[0].device)
        for k, depth in enumerate(self.depths):
            for rows, teacher_rows in depth.chunks(self.chunk_size):
                logits, _ = self.unembed(depth.unembedding, states[k][rows], "student", False)
                teacher_logits, _ = self.unembed(self.teacher_unembedding, states[-1][teacher_rows], "teacher", False)
                q = torch.softmax(logits, dim=-1, out=self.buffer("probs", logits.shape, logits))
                acceptance[rows, k] = torch.minimum(q, torch.softmax(teacher_logits, dim=-1)).sum(dim=-1)
        return acceptance

    def unembed(
        self, unembedding: Unembedding, states: Tensor, name: str, differentiable: bool
    ) -> tuple[Tensor, Transform]:
        """Logits in full precision, good until the next chunk of that ``name``; and what pulls gradients back there."""
        weight, bias = (None if parameter is None else self.operand(parameter) for parameter in unembedding)
        assert weight is not None
        states = states.to(self.product_dtype)
        raw = self.buffer(name, (len(states), len(weight)), states)
        narrow = raw if raw.dtype == self.product_dtype else raw.new_empty(raw.shape, dtype=self.product_dtype)
        if bias is None:
            torch.mm(states, weight.t(), out=narrow)
        else:
            torch.addmm(bias, states, weight.t(), out=narrow)
        if narrow is not raw:
            raw.copy_(narrow)
        if self.transform is None:
            return raw, _unchanged
        if not differentiable:
            return self.transform(raw).to(raw.dtype), _unchanged
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            transformed = self.transform(leaf).to(raw.dtype)
        return transformed.detach(), lambda gradient: torch.autograd.grad(transformed, leaf, gradient)[0]

    def narrowed(self, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient as an operand, and what it was divided by.

        Weights hold one over the number of tokens, and a gradient scaler multiplies only in the backward pass: in
        float16 these gradients would be zero by then.
        """
        if self.product_dtype != torch.float16:
            return gradient.to(self.product_dtype), None
        scale = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
        return (gradient / scale).to(torch.float16), scale

    def product(self, gradient: Tensor, scale: Tensor | None, weight: Tensor) -> Tensor:
        """Gradient by the states, from a narrowed one by the logits."""
        product = gradient @ self.operand(weight)
        product = product.to(_precise(product.dtype))
        return product if scale is None else product * scale

    def add_product_(self, total: Tensor, gradient: Tensor, scale: Tensor | None, states: Tensor) -> None:
        """Adds the gradient by the weight, from a narrowed one by the logits."""
        states = states.to(self.product_dtype)
        if total.dtype == self.product_dtype:
            total.addmm_(gradient.t(), states)
        else:
            product = (gradient.t() @ states).to(total.dtype)
            total += product if scale is None else product * scale

    def operand(self, parameter: Tensor) -> Tensor:
        """The parameter as products use it; cast once, not once a chunk."""
        if id(parameter) not in self.operands:
            self.operands[id(parameter)] = parameter.detach().to(self.product_dtype)
        return self.operands[id(parameter)]

    def buffer(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of that shape in full precision, given out again at the next call with the same name."""
        num_rows, width = shape
        held = self.buffers.get((name, width))
        if held is None or len(held) < num_rows:
            held = torch.empty(num_rows, width, dtype=_precise(like.dtype), device=like.device)
            self.buffers[name, width] = held
        return held[:num_rows]

    @property
    def measures_kl(self) -> bool:
        """Whether the divergence from the teacher is computed."""
        return bool(self.terms.kl) or self.measure_all

    @property
    def measures_acceptance(self) -> bool:
        """Whether what the teacher accepts is computed."""
        return bool(self.terms.tv or self.terms.e2e_tv) or self.measure_all

    @property
    def measures_latent(self) -> bool:
        """Whether the distance from the teacher's latents is computed."""
        return bool(self.terms.latent) or self.measure_all


@dataclass(frozen=True)
class _Weights:
    """What ce, kl and tv of a depth count for in the whole loss; None for not at all, ``tv`` may differ by token."""

    ce: float | Tensor
    kl: float | Tensor | None
    tv: float | Tensor | None

    @classmethod
    def of(cls, terms: LossTerms, depth_weight: float | Tensor, tv_weight: Tensor | None) -> "_Weights":
        """The terms' coefficients times the depth's weight, and what the end-to-end loss adds to tv's."""
        tv: float | Tensor | None = depth_weight * terms.tv if terms.tv else None
        if tv_weight is not None:
            tv = tv_weight if tv is None else tv_weight + tv
        return cls(ce=depth_weight * terms.ce, kl=depth_weight * terms.kl if terms.kl else None, tv=tv)


class _Tokens:
    """The losses of one chunk of tokens and their gradients by the logits; see the table at the top."""

    def __init__(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, probs: Tensor) -> None:
        self.logits, self.labels, self.teacher_logits = logits, labels, teacher_logits
        self.q = torch.softmax(logits, dim=-1, out=probs)
        self.label_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
        self.top_logits = logits.amax(dim=-1)
        # max q = exp(max z - log sum exp z), and at least 1/V: one cheap pass instead of a log-sum-exp.
        self.log_norm = self.top_logits - self.q.amax(dim=-1).log()
        self.ce = self.log_norm - self.label_logits
        if teacher_logits is not None:
            self.p = torch.softmax(teacher_logits, dim=-1)

    def top1_hits(self) -> Tensor:
        """How many labels are the argmax, which is much slower than a maximum: it is asked for where they can be."""
        possible = (self.label_logits == self.top_logits).nonzero().squeeze(-1)
        return (self.logits[possible].argmax(dim=-1) == self.labels[possible]).sum()

    @property
    def log_ratio(self) -> Tensor:
        """Log p - log q, zero where p is."""
        assert self.teacher_logits is not None
        teacher_norm = self.teacher_logits.amax(dim=-1) - self.p.amax(dim=-1).log()
        difference = self.teacher_logits - self.logits
        return difference.add_((self.log_norm - teacher_norm)[:, None]).masked_fill_(self.p == 0, 0.0)

    @property
    def kl(self) -> Tensor:
        """KL(p || q)."""
        return torch.linalg.vecdot(self.p, self.log_ratio)

    @property
    def accepted(self) -> Tensor:
        """sum_v min(p, q)."""
        return torch.minimum(self.p, self.q).sum(dim=-1)

    def student_gradient_(self, weights: _Weights) -> Tensor:
        """Gradient of the weighted loss by the student's logits, in the memory of ``q``."""
        scale = weights.ce if weights.kl is None else weights.ce + weights.kl
        if weights.tv is not None:
            below = (self.q < self.p).to(self.q.dtype)
            scale = torch.linalg.vecdot(self.q, below)[:, None].sub(below).mul_(weights.tv).add_(scale)
        gradient = self.q.mul_(scale)
        if weights.kl is not None:
            gradient.sub_(weights.kl * self.p)
        label_gradient = -weights.ce * torch.ones_like(self.ce)
        return gradient.scatter_add_(-1, self.labels[:, None], label_gradient[:, None])

    def teacher_gradient(self, weights: _Weights) -> Tensor:
        """Gradient of the weighted loss by the teacher's logits."""
        scale = torch.zeros_like(self.p)
        if weights.kl is not None:
            log_ratio = self.log_ratio
            scale += weights.kl * log_ratio.sub_(torch.linalg.vecdot(self.p, log_ratio)[:, None])
        if weights.tv is not None:
            below = (self.p < self.q).to(self.p.dtype)
            scale += weights.tv * (torch.linalg.vecdot(self.p, below)[:, None] - below)
        return scale.mul_(self.p)


def _smooth_l1_gradient(latent: Tensor, target: Tensor, beta: float) -> Tensor:
    dtype = _precise(latent.dtype)
    return ((latent.to(dtype) - target.to(dtype)) / beta).clamp_(-1.0, 1.0).div_(latent.shape[-1])


def _unchanged(gradient: Tensor) -> Tensor:
    return gradient


def _precise(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _held_dtype(value: Tensor, is_latent: bool) -> torch.dtype:
    # Rows of a latent are written once, so bfloat16 loses nothing there; float16 would, see _Sweep.narrowed. In other
    # buffers chunks and depths add up, which loses in any half precision.
    return value.dtype if is_latent and value.dtype != torch.float16 else _precise(value.dtype)


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])


def _parameters(layer: nn.Linear) -> Unembedding:
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise TypeError(
            f"an output layer is a {type(layer).__name__}; only weight and bias of a torch.nn.Linear are read here. "
            "Merge its adapter or dequantise it, or compute its logits and take worldmtp.divergences."
        )
    return layer.weight, layer.bias


def _constant(weight: float | Tensor) -> float | Tensor:
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ValueError("a depth's weight requires a gradient, which it would not get; detach it.")
    return weight


def _valid_rows(valid: Tensor, offset: int | None) -> Tensor | int:
    length = valid.shape[1]
    if offset is not None and bool(valid[:, max(length - offset + 1, 0) :].any()):
        raise ValueError(
            f"a valid target of the depth with offset={offset} has its teacher at a position beyond the {length} there "
            "are; mask the targets that lie after the end."
        )
    rows = valid.reshape(-1).nonzero().squeeze(-1)
    return len(rows) if len(rows) == valid.numel() else rows


def _product_dtype(latents: Sequence[Tensor], depths: Sequence[_Depth], teacher: Teacher | None) -> torch.dtype:
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
