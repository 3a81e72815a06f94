"""rlkit: reinforcement-learning alignment of language models, vLLM rollouts and DeepSpeed updates on the same GPUs."""

__version__ = "0.1.0"
