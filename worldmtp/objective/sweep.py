"""One evaluation of all depths: chunk after chunk of valid positions through output layer, loss and gradient.

The engine of ``worldmtp.objective.fused``, which checks what comes in and is the function that autograd sees. Here one
chunk of one depth's logits lives at a time, beside one chunk of the teacher's, in memory that the next chunk takes
over; gradients are added to buffers that the caller made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldmtp.objective.objective import LossTerms
from worldmtp.objective.token_losses import (
    TokenLosses,
    TokenWeights,
    acceptance_gradient,
    acceptance_losses,
    expected_accepted_length,
    precise_dtype,
    smooth_l1_gradient,
    smooth_l1_per_token,
)

Transform = Callable[[Tensor], Tensor]
Rows = slice | Tensor
Unembedding = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class SweptDepth:
    """What is known of a depth before its logits; ``rows`` of batch times time that are valid, or how many if all."""

    rows: Tensor | int
    labels: Tensor
    unembedding: Unembedding
    detach_output: bool
    weight: float | Tensor
    ahead: int

    def chunks(self, chunk_size: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield valid positions, ``chunk_size`` at a time, and where the teacher stands for them."""
        if isinstance(self.rows, int):  # slices are views; nothing is copied
            for start in range(0, self.rows, chunk_size):
                rows = slice(start, min(start + chunk_size, self.rows))
                yield rows, rows  # all positions are valid, so the teacher is not ahead: that was checked
        else:
            for chosen in self.rows.split(chunk_size) if len(self.rows) else ():
                yield chosen, chosen + self.ahead


@dataclass(frozen=True)
class Tally:
    """What a sweep adds to, beside the flat inputs that it reads: ``gradients`` stands in their order.

    ``sums`` holds ce, kl, tv, latent and accepted of each depth, ``weighed`` its losses of the acceptance.
    """

    states: list[Tensor]
    gradients: list[Tensor | None]
    sums: Tensor
    top1_hits: Tensor
    weighed: Tensor


@dataclass(frozen=True)
class DepthSweep:
    """One evaluation of all depths. ``places`` tells at which input a parameter stands, by its id."""

    depths: list[SweptDepth]
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
        """Return the loss, the sums of ce, kl, tv, latent and accepted, and the hits; add to ``gradients``."""
        num_depths, device, dtype = len(self.depths), inputs[0].device, precise_dtype(inputs[0].dtype)
        tally = Tally(
            states=[_flat(value) for value in inputs],
            gradients=[None if gradient is None else _flat(gradient) for gradient in gradients],
            sums=torch.zeros(5, num_depths, dtype=dtype, device=device),
            top1_hits=torch.zeros(num_depths, dtype=torch.int64, device=device),
            weighed=torch.zeros(num_depths, dtype=dtype, device=device),
        )
        loss = torch.zeros((), dtype=dtype, device=device)
        tv_weights = None
        if self.terms.e2e_tv:
            coef = self.terms.e2e_tv * (sum(depth.weight for depth in self.depths) / num_depths)
            acceptance = self.acceptance(tally.states, dtype)
            loss += coef * (self.mask.sum() - expected_accepted_length(acceptance).sum())
            tv_weights = coef * acceptance_gradient(acceptance)
        for k, depth in enumerate(self.depths):
            for rows, teacher_rows in depth.chunks(self.chunk_size):
                tv_weight = None if tv_weights is None else tv_weights[rows, k, None]
                self.add_chunk(tally, k, rows, teacher_rows, tv_weight)
            terms, (ce, kl, tv, latent, _) = self.terms, tally.sums[:, k]
            loss += depth.weight * (terms.ce * ce + terms.kl * kl + terms.tv * tv + terms.latent * latent)
            if terms.on_acceptance:
                loss += depth.weight * tally.weighed[k]
        return loss, tally.sums, tally.top1_hits

    def add_chunk(self, tally: Tally, k: int, rows: Rows, teacher_rows: Rows, tv_weight: Tensor | None) -> None:
        """Add one chunk's losses and hits, and the gradients that follow from them, to ``tally``."""
        depth, terms = self.depths[k], self.terms
        states, gradients, sums = tally.states, tally.gradients, tally.sums[:, k]
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
        tokens = TokenLosses(
            logits, depth.labels[rows].long(), teacher_logits, self.buffer("probs", logits.shape, logits)
        )
        if teacher_logits is not None and self.measures_kl:
            sums[1] += tokens.kl.sum()
        if teacher_logits is not None and self.measures_acceptance:
            accepted = tokens.accepted.sum()
            sums[2] += len(tokens.labels) - accepted
            sums[4] += accepted
        sums[0] += tokens.ce.sum()
        tally.top1_hits[k] += tokens.top1_hits()
        if self.measures_latent and teacher_state is not None:
            sums[3] += smooth_l1_per_token(latent, teacher_state, terms.latent_beta).sum()

        accepted_by_token = tokens.accepted if terms.on_acceptance else None
        if accepted_by_token is not None:
            tally.weighed[k] += acceptance_losses(terms, tokens).sum()
        weights = TokenWeights.of(terms, depth.weight, tv_weight, accepted_by_token)
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
            direct = depth.weight * terms.latent * smooth_l1_gradient(latent, teacher_state, terms.latent_beta)
            by_latent = direct if by_latent is None else by_latent + direct
            by_state = -direct if by_state is None else by_state - direct
        if latent_gradient is not None and by_latent is not None:
            latent_gradient[rows] = by_latent.to(latent_gradient.dtype)
        if teacher_gradient is not None and by_state is not None:
            teacher_gradient[teacher_rows] += by_state  # the rows of one depth are distinct

    def acceptance(self, states: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the chance that a position's draft is accepted; zero where invalid, which ends the product."""
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
        """Return logits in full precision, good until the next chunk of that name, and what pulls gradients back."""
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
        """Return the gradient as an operand, and what it was divided by.

        Weights hold one over the number of tokens, and a gradient scaler multiplies only in the backward pass: in
        float16 these gradients would be zero by then.
        """
        if self.product_dtype != torch.float16:
            return gradient.to(self.product_dtype), None
        scale = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
        return (gradient / scale).to(torch.float16), scale

    def product(self, gradient: Tensor, scale: Tensor | None, weight: Tensor) -> Tensor:
        """Return the gradient by the states, from a narrowed one by the logits."""
        product = gradient @ self.operand(weight)
        product = product.to(precise_dtype(product.dtype))
        return product if scale is None else product * scale

    def add_product_(self, total: Tensor, gradient: Tensor, scale: Tensor | None, states: Tensor) -> None:
        """Add the gradient by the weight, from a narrowed one by the logits."""
        states = states.to(self.product_dtype)
        if total.dtype == self.product_dtype:
            total.addmm_(gradient.t(), states)
        else:
            product = (gradient.t() @ states).to(total.dtype)
            total += product if scale is None else product * scale

    def operand(self, parameter: Tensor) -> Tensor:
        """Return the parameter as products use it; cast once, not once a chunk."""
        if id(parameter) not in self.operands:
            self.operands[id(parameter)] = parameter.detach().to(self.product_dtype)
        return self.operands[id(parameter)]

    def buffer(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return memory of that shape in full precision, given out again at the next call with the same name."""
        num_rows, width = shape
        held = self.buffers.get((name, width))
        if held is None or len(held) < num_rows:
            held = torch.empty(num_rows, width, dtype=precise_dtype(like.dtype), device=like.device)
            self.buffers[name, width] = held
        return held[:num_rows]

    @property
    def measures_kl(self) -> bool:
        """Return whether the divergence from the teacher is computed."""
        return bool(self.terms.kl) or self.measure_all

    @property
    def measures_acceptance(self) -> bool:
        """Return whether what the teacher accepts is computed."""
        return self.terms.on_teacher_logits or self.measure_all

    @property
    def measures_latent(self) -> bool:
        """Return whether the distance from the teacher's latents is computed."""
        return bool(self.terms.latent) or self.measure_all


def _unchanged(gradient: Tensor) -> Tensor:
    return gradient


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1])
