"""Estimators of KL(pi || pi_ref) from tokens that pi sampled; Schulman, "Approximating KL divergence" (2020)."""

from __future__ import annotations

from torch import Tensor

GAIN, LIMIT = 0.1, 0.2  # of the controller, as in the paper


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, of high variance, its gradient zero in expectation; [B, T]."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: its gradient is that of the KL; [B, T]."""
    return 0.5 * (logprobs - ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r - 1 - log r with r = pi_ref / pi: unbiased and never negative (GRPO, arXiv 2402.03300, equation 4); [B, T]."""
    log_r = ref_logprobs - logprobs
    return log_r.expm1() - log_r


def adapt_coefficient(coef: float, measured: float, target: float) -> float:
    """The coefficient of the next step: coef (1 + GAIN e), e = clip((measured - target) / target, -LIMIT, LIMIT).

    The log-space proportional controller of Ziegler et al., arXiv 1909.08593, section 2.2. measured, target: nats a completion.
    """
    error = (measured - target) / target
    return coef * (1.0 + GAIN * min(max(error, -LIMIT), LIMIT))
