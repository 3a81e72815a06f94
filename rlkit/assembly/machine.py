"""Checks that the GPUs of this machine can be used as they are, before anything is loaded, and sets how this process uses its own."""

from __future__ import annotations

from rlkit.assembly import plan
from rlkit.config.recipe import Recipe
from rlkit.engines import liger
from rlkit.errors import UserError
from rlkit.runtime.gpu_setup import ON_THE_CPU, check_compiler, name_gpus_by_number
from rlkit.runtime.hardware import count_visible_gpus
from rlkit.runtime.library_settings import expand_segments


def check_gpu(recipe: Recipe) -> None:
    """Raises UserError where a GPU is visible whose memory is not known, or for which nothing can be compiled. Starts no CUDA."""
    if not count_visible_gpus() or plan.is_for_other_nodes(recipe):
        return
    if plan.find_gpu_memory(recipe) is None:
        raise UserError(explain_silent_driver())
    if samples_with_vllm(recipe) or liger.is_installed():
        check_compiler()


def explain_silent_driver() -> str:
    """What to do where nvidia-smi does not answer."""
    return (
        f"this machine has {count_visible_gpus()} GPU(s), and nvidia-smi does not answer with their memory, by which a run is planned: "
        "install it (the driver's package nvidia-utils; for a container NVIDIA_DRIVER_CAPABILITIES=compute,utility), "
        f"or set hardware.gpu_gib; or, {ON_THE_CPU}"
    )


def prepare_gpu(recipe: Recipe) -> None:
    """Sets the environment of this process, before CUDA starts."""
    name_gpus_by_number()
    if not samples_with_vllm(recipe):
        expand_segments()


def samples_with_vllm(recipe: Recipe) -> bool:
    return not recipe.offline_algorithm and recipe.engine.rollout == "vllm"
