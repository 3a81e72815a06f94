"""The nouns of a run: what travels between a prompt and a loss.

Request -> Sample -> ScoredSample -> Group -> Batch -> Signals -> Credit. Each stage makes a new frozen object; none fills in a field of
an older one. B samples of this rank, N samples of the step on all ranks, T tokens of the longest completion, L tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from torch import Tensor


class Key(NamedTuple):
    """Identifies one completion: the data row, how often that row was drawn before, which sample of the group, which turn."""

    prompt: int
    draw: int
    sample: int
    turn: int = 0

    @property
    def of_prompt(self) -> tuple[int, int]:
        """Identifies its prompt: row and draw. Two rows may have equal token ids and yet differ in their answer or an image."""
        return self.prompt, self.draw


class Stop(StrEnum):
    """Why a completion ended."""

    EOS = "eos"  # the policy sampled an end token, which is part of the completion
    LENGTH = "length"  # cut at the limit; there is no end token
    ABORTED = "aborted"  # the run asked the engine to stop


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 takes the most likely token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def truncated(self) -> bool:
        """Whether the sampler draws from less than the policy's own distribution."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True)
class Request:
    """One completion to sample, from its beginning or after what an earlier step sampled of it.

    The seed depends on the key and on the number of tokens that it has, not on the rank or the order.
    """

    key: Key
    tokens: tuple[int, ...]  # of the prompt
    sampling: Sampling
    seed: int
    begun: Sample | None = None  # what it has; the sample that comes back begins with its tokens, log-probs and versions

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens after which the next one is sampled."""
        return self.tokens if self.begun is None else (*self.tokens, *self.begun.tokens.tolist())

    @property
    def tokens_left(self) -> int:
        """The most tokens that are still to be sampled."""
        return self.sampling.max_tokens - (0 if self.begun is None else len(self.begun.tokens))


@dataclass(frozen=True, eq=False)
class Sample:
    """One completion with all that its sampler knows of it. The tensors are on the CPU."""

    key: Key
    prompt: tuple[int, ...]
    tokens: Tensor  # [L] int64, with the end token that was sampled
    mask: Tensor  # [L] bool, True: written by the policy, counts in the loss
    rollout_logprobs: Tensor  # [L] float32, of the distribution that was sampled from
    versions: Tensor  # [L] int32, the weights that sampled each token
    stop: Stop
    text: str


@dataclass(frozen=True, eq=False)
class ScoredSample:
    """A sample and its reward. reward None: the reward function failed, which is not a reward of zero."""

    sample: Sample
    reward: float | None
    components: Mapping[str, float | None]
    extra: Mapping[str, float] = field(default_factory=dict)
    turn_rewards: tuple[tuple[int, float], ...] = ()  # parts of the reward: of an episode's turns, by the place of the last token of each


@dataclass(frozen=True, eq=False)
class Group:
    """The samples of one prompt."""

    index: int  # position of the prompt in the step, over all ranks
    samples: tuple[ScoredSample, ...]
    greedy: ScoredSample | None = None  # the most likely completion, where the algorithm takes it for a baseline
    answer: Any = None  # of the data, as it is; None: there is none


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of a step that this rank works on."""

    samples: tuple[Sample, ...]  # B of them
    mask: Tensor  # [B, T] bool
    rollout_logprobs: Tensor  # [B, T] float32, 0 where mask is False
    rewards: Tensor  # [B] float64, 0 where not valid
    valid: Tensor  # [B] bool, False: the reward failed
    group: Tensor  # [B] int64, index of the sample's group in the step
    index: Tensor  # [B] int64, position of the sample in the step, over all ranks
    minibatch: Tensor  # [B] int64, which minibatch of a pass the sample belongs to
    lag: Tensor  # [B, T] int64, training steps since the weights that sampled the token, 0 where it does not count
    size: int  # N
    turn_rewards: Tensor | None = None  # [B, T] float64, the parts of `rewards` that belong to turns, on their last tokens; None: none do
    baseline: Tensor | None = None  # [B] float64, reward of the greedy completion of the same prompt; nan where the reward failed

    @property
    def own(self) -> Tensor:
        """Tokens that count and were sampled with the current weights; [B, T] bool."""
        return self.mask & (self.lag == 0)


@dataclass(frozen=True, eq=False)
class Signals:
    """Outputs of models on a batch before the update; None where the algorithm does not need them."""

    old_logprobs: Tensor | None = None  # [B, T] float32
    ref_logprobs: Tensor | None = None  # [B, T] float32
    values: Tensor | None = None  # [B, T] float32
    teacher_logprobs: Tensor | None = None  # [B, T] float32


@dataclass(frozen=True, eq=False)
class Credit:
    """What the algorithm computes from the rewards."""

    advantages: Tensor  # [B, T] float32, 0 where mask is False
    returns: Tensor | None = None  # [B, T] float32, the targets of the critic; nan where the reward failed
    kl_coef: float | None = None  # of this step, where it adapts from step to step


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The rows of a micro-batch as a loss sees them; T is the longest completion among them."""

    mask: Tensor  # [B, T] bool
    logprobs: Tensor  # [B, T] float32, of the policy, with gradient
    entropy: Tensor  # [B, T] float32, of the policy
    old_logprobs: Tensor  # [B, T] float32, no gradient
    rollout_logprobs: Tensor  # [B, T] float32
    ref_logprobs: Tensor | None  # [B, T] float32
    advantages: Tensor  # [B, T] float32
    kl_coef: float | None = None  # from the credit; None: the one of the recipe


@dataclass(frozen=True, eq=False)
class OfflineMicroBatch:
    """The completions of a micro-batch as an offline loss sees them; of pairs the chosen one of each first, then its rejected one."""

    mask: Tensor  # [B, T] bool
    outputs: Tensor  # [B, T] of the model being trained, with gradient: log-probs of the tokens, or with T = 1 one score a completion
    reference: Tensor | None = None  # [B] float64, log-probs of whole completions by the model before training
    desirable: Tensor | None = None  # [B] bool, of rated completions
    baseline: Tensor | None = None  # a scalar, float64, where the algorithm needs one
