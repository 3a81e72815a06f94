"""Estimates what DeepSpeed's ZeRO allocates for the weights that are trained: plain formulas, in bytes of one process.

Letters: T trained weights, b bytes of a weight, g bytes of an accumulated gradient, W processes, L weights of the largest tensor, B the
reduce bucket. Read from the source of DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py and stage3.py), and measured by
tests/profiling/test_zero_memory.py. Left out: where gradients add up in the dtype of the weights, ZeRO 2 holds a tensor whole of which
only a part is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

REDUCE_BUCKET = 2**27  # gradients that are reduced together, at most: enough for any network, and ZeRO 2 and 3 hold such buckets whole
OPTIMIZER_BLOCK = 2**28  # weights that the optimizer updates at a time, unless one tensor has more
NORM_WIDTH = 8  # bytes of a gradient in its norm, which DeepSpeed computes in float64, tensor by tensor


def resolve_zero_stage(zero_stage: int, world: int) -> int:
    """The ZeRO stage that is used. Not 0, which does not detect non-finite gradients. In one process not 2, which partitions nothing
    there and reduces every micro-batch."""
    return max(1, zero_stage if world > 1 or zero_stage == 3 else 1)


@dataclass(frozen=True)
class ZeroMemory:
    """What a learner under ZeRO takes beside its weights and activations. All sizes in bytes."""

    weights: int  # that are trained, of all processes
    largest: int  # of them, in the largest tensor
    width: int  # bytes of a weight
    world: int
    stage: int  # 1, 2 or 3
    float32_gradients: bool  # micro-batches add up in float32, whatever the dtype of the weights
    offload: bool = False  # the optimizer's state and step are on the host

    @property
    def part(self) -> float:
        """Weights whose optimizer state this process has."""
        return self.weights / self.world

    @property
    def bucket(self) -> int:
        """Weights of the reduce bucket."""
        return min(self.weights, REDUCE_BUCKET)

    @property
    def buckets(self) -> int:
        """Those that ZeRO 2 holds: while one is reduced, the other fills."""
        return 2 if self.world > 1 else 1

    @property
    def gradient_width(self) -> int:
        """g. An offloaded optimizer of ZeRO 1 and 2 takes gradients in the dtype of the weights."""
        return 4 if self.float32_gradients and not (self.offload and self.stage < 3) else self.width

    @property
    def is_widened(self) -> bool:
        """Whether gradients add up in more bits than weights have."""
        return self.gradient_width > self.width

    @property
    def moments(self) -> float:
        return 8 * self.part

    @property
    def state(self) -> float:
        """float32 masters and two moments: DeepSpeed has masters beside float32 weights too."""
        return 4 * self.part + self.moments

    @property
    def gradients(self) -> float:
        """The sum over micro-batches, on the device: of all weights with z = 1, of this process's part from z = 2 on."""
        if self.offload and self.stage > 1:
            return 0.0
        return (self.weights if self.stage == 1 else self.part) * self.gradient_width

    @property
    def incoming(self) -> float:
        """The gradient of the largest tensor as it is computed; ZeRO 1 widens it before it is added."""
        return self.largest * (self.width + (self.gradient_width if self.is_widened and self.stage == 1 else 0))

    @property
    def fixed(self) -> float:
        """What is always allocated: the bucket of ZeRO 3, and of an offloaded optimizer a buffer for the largest tensor."""
        return (self.bucket * self.width if self.stage == 3 else 0.0) + (
            self.largest * self.width if self.offload and self.stage < 3 else 0.0
        )

    @property
    def reduction(self) -> float:
        """In a backward pass. ZeRO 1 reduces in the step alone. ZeRO 2 and 3 copy gradients into a bucket and, to reduce it, into one
        tensor; of one that is larger than a bucket ZeRO 2 makes a copy, ZeRO 3 none. Where they are not widened, ZeRO 2 holds the
        gradients of a micro-batch beside their sum."""
        if self.stage == 1:
            return 0.0
        if self.stage == 3:
            return self.bucket * self.width
        beside = 0.0 if self.is_widened or self.offload else self.part
        return (self.buckets * self.bucket + max(self.bucket, self.largest) + beside) * self.width

    @property
    def step(self) -> float:
        """The largest of the norm, of the reduction of ZeRO 1, and of what the optimizer updates at a time: the gradients of a block in
        one piece, and of gradients that are not float32 a copy. ZeRO 2 has widened gradients in one piece already."""
        block = min(self.weights, max(OPTIMIZER_BLOCK, self.largest)) / self.world
        norm = NORM_WIDTH * (self.largest / self.world if self.stage == 3 else min(self.largest, block))
        reduced = self.bucket * self.gradient_width if self.stage == 1 else 0.0
        if self.offload or (self.stage == 2 and self.is_widened):
            return max(norm, reduced)
        return max(norm, reduced, block * (self.gradient_width + (4 if self.gradient_width < 4 else 0)))

    @property
    def offloaded(self) -> float:
        """On the host, of an offloaded optimizer: masters, their gradients and two moments, 16 bytes a weight; of ZeRO 3 the sum of the
        gradients, g; of ZeRO 1 and 2 that sum and the new weights on their way back, 2 b, and a buffer for the largest tensor."""
        if self.stage == 3:
            return (16 + self.gradient_width) * self.part
        return (16 + 2 * self.width) * self.part + self.largest * self.width

    @property
    def parked(self) -> float:
        """What leaves the device for a rollout: the state, and the gradient buffer of ZeRO 3. Nothing of an offloaded optimizer."""
        return 0.0 if self.offload else self.state + (self.gradients if self.stage == 3 else 0.0)
