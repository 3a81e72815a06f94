"""Losses of preferences: one value a pair, or for KTO one a completion, never reduced; for offline algorithms.

`margin` [N] is (log pi - log pi_ref of the chosen) - (the same of the rejected), sums over tokens. `chosen`, `rejected` [N] are means of
log pi over a completion's tokens, for the losses without a reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

CERTAIN = -1e-7  # the largest mean log-prob of which odds are taken; 1 - exp(0) has no logarithm


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta margin): DPO, arXiv 2305.18290, equation 7; [N]. ln 2 where policy and reference agree."""
    return -logsigmoid(beta * margin)


def conservative_dpo_loss(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(beta margin) - e log sigmoid(-beta margin), e the share of flipped labels; [N].

    Conservative DPO: Mitchell (2023), "A note on DPO with noisy preferences", equation 3.
    """
    return -(1.0 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)


def hinge_loss(margin: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta margin): the calibration loss of SLiC-HF, arXiv 2305.10425, on DPO's margin; [N]."""
    return relu(1.0 - beta * margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2: IPO, arXiv 2310.12036, equation 17, by sums of log-probs; [N]."""
    return (margin - 1.0 / (2.0 * beta)).square()


def robust_dpo_loss(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """(-(1 - e) log sigmoid(beta margin) + e log sigmoid(-beta margin)) / (1 - 2 e), e < 1/2: arXiv 2403.00409, equation 12; [N].

    Its expectation under labels flipped at the rate e is DPO's loss under true ones.
    """
    loss = -(1.0 - label_smoothing) * logsigmoid(beta * margin) + label_smoothing * logsigmoid(-beta * margin)
    return loss / (1.0 - 2.0 * label_smoothing)


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma), by means of log-probs: SimPO, arXiv 2405.14734, equation 6; [N]."""
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo_loss(chosen: Tensor, rejected: Tensor, weight: float) -> Tensor:
    """-chosen - weight log sigmoid(log(odds of chosen / odds of rejected)), odds = p / (1 - p), by means of log-probs; [N].

    ORPO, arXiv 2403.07691, equations 6 and 7: likelihood of the chosen, and that it is likelier than the rejected.
    """
    return -chosen - weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprob) < 1; [N]."""
    sure = logprob.clamp(max=CERTAIN)
    return sure - torch.log(-torch.expm1(sure))


def kto_loss(log_ratios: Tensor, desirable: Tensor, baseline: Tensor, beta: float, gain: float, loss: float) -> Tensor:
    """gain (1 - sigmoid(beta (x - z))) where desirable [N] is True, loss (1 - sigmoid(beta (z - x))) elsewhere; [N].

    KTO, arXiv 2402.01306, equation 8; x = log_ratios [N], log(pi / pi_ref) of a completion, summed; z = `kto_baseline`, a scalar.
    """
    distance = beta * (log_ratios - baseline.detach())
    return torch.where(desirable, gain * torch.sigmoid(-distance), loss * torch.sigmoid(distance))


def kto_baseline(total: Tensor, count: Tensor) -> Tensor:
    """max(0, mean log(pi / pi_ref)) of completions that belong to other prompts, over the whole minibatch on all ranks; a scalar.

    The estimate of KL(pi || pi_ref) of arXiv 2402.01306, section 4.1; total and count are sums over ranks, and no gradient goes through.
    """
    return (total / count.clamp(min=1)).clamp(min=0.0).detach()
