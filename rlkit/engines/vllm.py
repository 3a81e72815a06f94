"""vLLM inside this process: the rollout engine. The only file that imports vllm, beside its readers of tool calls (vllm_tools.py).

Traps of vLLM 0.26 to 0.32 that are handled here: the engine must live in this process (no V1 multiprocessing); it needs the end tokens as
stop tokens, since it gets no tokenizer; generation_config.json of a model must not change sampling; `reload_weights` needs every tensor of
the checkpoint, the tied head too; the prefix cache holds keys and values of older weights and is reset after each load; log-probs are those
of the processed distribution, temperature included. A prompt that is prefilled in parts draws from its request's generator once too often
and winds it back, which a CPU's generator cannot do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlkit.engines.base import check_names, make_sample
from rlkit.engines.bit_sums import SentWeights, WeightComparison
from rlkit.engines.held_weights import HeldWeights, record_before_packing
from rlkit.engines.vllm_startup import explain_startup_error
from rlkit.errors import RunFailed, UserError
from rlkit.profiling import host_estimate, memory_estimate
from rlkit.types import Request, Sample, Stop

SEGMENT = "rlkit-tp-"  # names of shared memory begin with it and the id of the process that made them
HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"
CPU_BLOCK = 32  # tokens of a block of keys and values on a CPU: with vLLM's 128 a rollout of short samples took a tenth longer
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # valid values of max_lora_rank


class VLLMEngine:
    """One vLLM engine a process; it starts with dummy weights and samples nothing before the first load."""

    tokens_per_advance = 1

    def __init__(
        self,
        path: str,
        dtype: str,
        *,
        names: Sequence[str],
        max_model_len: int,
        eos: frozenset[int],
        world: int,
        sleeps: bool,
        extra: Mapping[str, Any],
        gpu: bool = False,
        tensor_parallel: int = 1,
        adapter_rank: int | None = None,
    ) -> None:
        """`names`: every tensor of the checkpoint; `adapter_rank`: of the adapters that `load_adapter` will get, if any; `extra`:
        arguments of vllm.LLM that win over ours."""
        set_vllm_environment(world)
        from vllm import LLM

        settings = build_engine_settings(path, dtype, max_model_len, gpu=gpu, sleeps=sleeps)
        if world > 1:
            settings |= {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": tensor_parallel}
        self._segments = name_shared_memory() if tensor_parallel > 1 and not gpu else None
        if adapter_rank is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": find_max_lora_rank(adapter_rank)}
            patch_adapted_layers()
        keep_model_classes()
        if not gpu:
            record_packed_weights()
        settings.update(extra)
        try:
            self.llm = LLM(**settings)
        except (TypeError, AssertionError, NotImplementedError, ValueError, torch.OutOfMemoryError) as error:
            raise UserError(explain_startup_error(error, path)) from error
        if not gpu and self.llm.llm_engine.model_config.get_num_experts() > 1:
            raise UserError(
                f"engine.rollout=vllm: {path} is a mixture of experts, of which vLLM takes new weights wrongly without a GPU; set it to hf"
            )
        if HEAD_BIAS in names:
            self.llm.apply_model(register_head_bias)
        self.engine = self.llm.llm_engine
        self.names, self.eos, self.sleeps = list(names), eos, sleeps
        self.version: int | None = None
        self._requests: dict[str, Request] = {}
        self._adapter: Any = None
        self._held = HeldWeights(gather_over_engine)

    @property
    def pending(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        if self.version is None:
            raise RunFailed("the rollout engine was asked to sample before its first weights arrived")
        name = "-".join(map(str, request.key))
        if name in self._requests:
            raise RunFailed(f"the completion {request.key} was requested twice")
        sampling = request.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=request.tokens_left,
            seed=None if sampling.greedy else request.seed,
            logprobs=0,
            detokenize=False,
            stop_token_ids=sorted(self.eos),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests[name] = request
        self.engine.add_request(name, {"prompt_token_ids": list(request.context)}, params, lora_request=self._adapter)

    def advance(self) -> list[Sample]:
        return [self._sample(output) for output in self.engine.step() if output.finished]

    def abort(self) -> list[Sample]:
        states = self.engine.output_processor.request_states.values()  # forgotten by an abort, with what was sampled
        by_name = {getattr(state, "external_req_id", None) or state.request_id: state for state in states}
        aborted = [self._abort_sample(request, by_name.get(name)) for name, request in self._requests.items()]
        self.engine.abort_request(list(self._requests))
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self._requests.clear()
        return aborted

    def _abort_sample(self, request: Request, state: Any) -> Sample:
        """What a request had so far; `state`: vLLM's of it, None where it has none."""
        tokens = [] if state is None else list(state.detokenizer.output_token_ids)
        entries = state.logprobs_processor.logprobs[: len(tokens)] if tokens else []
        logprobs = [entry[token].logprob for entry, token in zip(entries, tokens, strict=True)]
        return make_sample(request, tokens, logprobs, Stop.ABORTED, self.version)

    def _sample(self, output: Any) -> Sample:
        request = self._requests.pop(output.request_id)
        (completion,) = output.outputs
        tokens = list(completion.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(completion.logprobs, tokens, strict=True)]
        stop = Stop.EOS if tokens and tokens[-1] in self.eos else Stop.LENGTH
        return make_sample(request, tokens, logprobs, stop, self.version)

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        if self._requests:
            raise RunFailed(f"weights arrived while {len(self._requests)} completions were being sampled")
        self._adapter = None
        arrived: dict[str, None] = {}
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._pass_on(weights, arrived)})
        check_names(self.names, arrived)
        self._reset_prefix_cache()
        self.version = version

    def _pass_on(self, weights: Iterator[tuple[str, Tensor]], arrived: dict[str, None]) -> Iterator[tuple[str, Tensor]]:
        """The tensors that vLLM's model has; the names of all are put into `arrived`."""
        headless = not any(self.llm.apply_model(lambda model: hasattr(model, "lm_head")))  # Gemma 2, whose head is its embedding
        for name, tensor in weights:
            arrived[name] = None
            if not (headless and name == HEAD):
                yield name, tensor

    def load_adapter(
        self, tensors: Iterator[tuple[str, Tensor]], write: Callable[[Path, Mapping[str, Tensor]], None], version: int
    ) -> None:
        """Loads an adapter on top of the weights it holds; `write` writes the folder from which vLLM loads it."""
        from vllm.lora.request import LoRARequest

        own = dict(tensors)
        ram = Path("/dev/shm")
        with TemporaryDirectory(prefix="rlkit-adapter-", dir=ram if ram.is_dir() else None) as folder:
            write(Path(folder), own)
            # Removed first, and load_inplace: an adapter with a known number silently stays as it was.
            self.engine.remove_lora(1)
            if not self.engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True)):
                raise RunFailed("vLLM did not load the adapter that it was sent, and would sample with an older one")
            self.llm.collective_rpc(forget_adapter_mapping)
            self._adapter = LoRARequest("policy", 1, folder)
        self._reset_prefix_cache()
        self.version = version

    def _reset_prefix_cache(self) -> None:
        """Raises RunFailed where keys and values of older weights would stay."""
        if not self.llm.reset_prefix_cache():
            raise RunFailed(
                "vLLM did not clear its prefix cache after a load, because a request still holds blocks of it: completions would continue "
                "from keys and values of older weights; the same command continues from the last checkpoint"
            )

    def compare_weights(self, sent: SentWeights) -> WeightComparison:
        [found] = self.llm.apply_model(partial(self._held.compare, sent=sent))
        comparison: WeightComparison = found
        return comparison

    def wake_weights(self) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=["weights"])

    def wake_cache(self) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])

    def sleep(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=2)
            self.version = None

    def close(self) -> None:
        # shutdown() of the engine core would destroy the default process group under external_launcher; the process ends soon anyway
        self._requests.clear()
        for segment in Path("/dev/shm").glob(f"*{self._segments}*") if self._segments else ():
            segment.unlink(missing_ok=True)


def build_engine_settings(path: str, dtype: str, max_model_len: int, *, gpu: bool, sleeps: bool) -> dict[str, Any]:
    """The arguments of vllm.LLM for one process."""
    settings: dict[str, Any] = {
        "model": path,
        "dtype": dtype,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": max_model_len,
        "logprobs_mode": "processed_logprobs",
        "enable_sleep_mode": sleeps,
        "enforce_eager": not gpu,
        "disable_log_stats": True,
        "seed": 0,
    }
    if not gpu:  # see the docstring of the module on partial prefills
        settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(host_estimate.BATCH_TOKENS, max_model_len)}
        settings["block_size"] = CPU_BLOCK
    return settings


def name_shared_memory() -> str:
    """Gives the shared memory of a CPU engine's ranks a name of its own, which is returned, and removes that of runs that are gone.

    vLLM's fixed name outlives a killed run and stops the next one.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    named = [f"{SEGMENT}{os.getpid()}-"]
    dist.broadcast_object_list(named, src=0)
    original = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(  # type: ignore[method-assign]
        lambda communicator: named[0] + original(communicator).replace("/", "")
    )
    for left in Path("/dev/shm").glob(f"*{SEGMENT}*"):
        maker = left.name.partition(SEGMENT)[2].partition("-")[0]
        if maker.isdigit() and not Path("/proc", maker).exists():
            left.unlink(missing_ok=True)
    return named[0]


def forget_adapter_mapping(worker: Any) -> None:
    """Makes vLLM write anew which token of a batch uses which adapter. It writes that only where it differs from the last batch, and a
    sleep of level 2 discards the memory in which it stands."""
    manager = worker.model_runner.lora_manager._adapter_manager
    if hasattr(manager, "_last_mapping"):
        manager._last_mapping = None


def patch_adapted_layers() -> None:
    """Lets a checkpoint be loaded into layers with adapters: in vLLM 0.26 their base layers have other names than in the checkpoint."""
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.models.utils import AutoWeightsLoader

    def load(layer: Any, weights: Any) -> Any:
        base = layer.base_layer
        return (base if hasattr(base, "load_weights") else AutoWeightsLoader(base)).load_weights(weights)

    if not hasattr(BaseLayerWithLoRA, "load_weights"):
        BaseLayerWithLoRA.load_weights = load  # type: ignore[method-assign, assignment]


def record_packed_weights() -> None:
    """Keeps the sums of the weights that vLLM repacks for its kernels on a CPU, where it holds no other form of them."""
    from vllm.model_executor.layers import utils

    if not hasattr(utils.dispatch_cpu_unquantized_gemm, "__wrapped__"):
        utils.dispatch_cpu_unquantized_gemm = record_before_packing(utils.dispatch_cpu_unquantized_gemm)


def gather_over_engine(numbers: list[int]) -> list[list[int]]:
    """The lists of all ranks that share this rank's engine."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    parts: list[list[int]] = [[] for _ in range(group.world_size)]
    dist.all_gather_object(parts, numbers, group=group.cpu_group)
    return parts


def keep_model_classes() -> None:
    """Lets models of this process stay as transformers made them, whether they are built before the engine or after it.

    For families that it has no code of its own for, vLLM runs transformers' model, and for torch.compile it replaces `__init__` and
    `__call__` of that class: the trainer's models lack what its `__init__` would set, and none can be built outside of the engine. Here the
    replacements apply to the engine's instances alone.
    """
    from transformers import PreTrainedModel
    from vllm.compilation import decorators
    from vllm.config import get_current_vllm_config_or_none

    decorate = decorators._support_torch_compile
    if hasattr(decorate, "__wrapped__"):
        return

    @wraps(decorate)
    def decorate_instances_of_engine(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        own_init, own_call = cls.__init__, cls.__call__
        decorated = decorate(cls, *arguments, **keywords)
        engine_init, engine_call = cls.__init__, cls.__call__
        if not issubclass(cls, PreTrainedModel) or engine_init is own_init:  # vLLM's own class, or one of an earlier engine
            return decorated

        @wraps(own_init)
        def init(self: Any, *arguments: Any, **keywords: Any) -> None:
            (own_init if get_current_vllm_config_or_none() is None else engine_init)(self, *arguments, **keywords)

        @wraps(own_call)
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            return (engine_call if "vllm_config" in vars(self) else own_call)(self, *arguments, **keywords)

        cls.__init__, cls.__call__ = init, call
        return decorated

    decorators._support_torch_compile = decorate_instances_of_engine


def register_head_bias(model: Any) -> None:
    """Gives the head of transformers' model in vLLM its bias, which vLLM registers while a checkpoint is loaded, and loses in a reload."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    head: Any = getattr(model, "lm_head", None)
    if getattr(head, "bias", None) is not None or not hasattr(head, "_register_bias"):
        return
    with head.weight.device:
        head._register_bias()
    record_metadata_for_reloading(head)
    head._register_bias = lambda: None


def find_max_lora_rank(rank: int) -> int:
    """The smallest valid max_lora_rank for an adapter of a rank. Raises UserError where there is none."""
    valid = [largest for largest in LORA_RANKS if largest >= rank]
    if not valid:
        raise UserError(
            f"model.lora.rank={rank} is more than the {LORA_RANKS[-1]} that vLLM takes as an adapter; set engine.lora_sync=merged"
        )
    return valid[0]


def set_vllm_environment(world: int) -> None:
    """Sets the environment variables of vLLM, before it is imported; a value that is set already stays."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(host_estimate.KV_CACHE // memory_estimate.GIB),
    }
    if world > 1:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
