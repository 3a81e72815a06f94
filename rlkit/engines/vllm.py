"""vLLM inside this process: the rollout engine. The only file that imports vllm.

Traps this file knows (vLLM 0.26 to 0.32): the engine must live in this process (no V1 multiprocessing); the end token of the tokenizer
must be told to it, since tokenizers are not its business here; generation_config.json of a model must not change sampling; weights
arrive by `reload_weights`, which wants every tensor of the checkpoint, the tied head too; the prefix cache holds keys and values of
older weights and is dropped after each load; log-probs are those of the processed distribution, temperature included. A prompt that
is prefilled in parts draws from its request's generator once too often and winds it back, which a CPU's generator cannot do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rlkit.engines.base import checksum
from rlkit.engines.hf import check_names, make_sample
from rlkit.errors import RunFailed, UserError
from rlkit.profiling import memory_estimate
from rlkit.types import Request, Sample, Stop

SEGMENT = "rlkit-tp-"  # names of shared memory begin with it, and with the process that made them
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room


class VLLMEngine:
    """One vLLM engine a process; it starts with dummy weights and samples nothing before the first load."""

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
        """`names`: every tensor of the checkpoint; `adapter_rank`: of the adapter that `adapt` will bring, if any; `extra`: arguments for
        vllm.LLM that win over ours."""
        set_environment(world)
        from vllm import LLM

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
        if not gpu:  # see the module on partial prefills
            settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(memory_estimate.HOST_BATCH, max_model_len)}
        if world > 1:
            settings |= {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": tensor_parallel}
        self._segments = name_shared_memory() if tensor_parallel > 1 and not gpu else None
        if adapter_rank is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room_for(adapter_rank)}
            load_beneath_adapters()
        settings.update(extra)
        try:
            self.llm = LLM(**settings)
        except TypeError as error:
            raise UserError(f"engine.vllm holds a setting that vLLM does not take: {error}") from error
        self.engine = self.llm.llm_engine
        self.names, self.eos, self.sleeps = list(names), eos, sleeps
        self.version: int | None = None
        self._requests: dict[str, Request] = {}
        self._received: dict[str, Tensor] = {}
        self._adapter: Any = None

    @property
    def pending(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        if self.version is None:
            raise RunFailed("the rollout engine was asked to sample before its first weights arrived")
        name = "-".join(map(str, request.key))
        if name in self._requests:
            raise RunFailed(f"the completion {request.key} was asked for twice")
        sampling = request.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=None if sampling.greedy else request.seed,
            logprobs=0,
            detokenize=False,
            stop_token_ids=sorted(self.eos),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._requests[name] = request
        self.engine.add_request(name, {"prompt_token_ids": list(request.tokens)}, params, lora_request=self._adapter)

    def advance(self) -> list[Sample]:
        return [self._sample(output) for output in self.engine.step() if output.finished]

    def abort(self) -> list[Sample]:
        self.engine.abort_request(list(self._requests))
        while self.engine.has_unfinished_requests():
            self.engine.step()
        aborted = [make_sample(request, [], [], Stop.ABORTED, self.version) for request in self._requests.values()]
        self._requests.clear()
        return aborted

    def _sample(self, output: Any) -> Sample:
        request = self._requests.pop(output.request_id)
        (said,) = output.outputs
        tokens = list(said.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(said.logprobs, tokens, strict=True)]
        stop = Stop.EOS if tokens and tokens[-1] in self.eos else Stop.LENGTH
        return make_sample(request, tokens, logprobs, stop, self.version)

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        if self._requests:
            raise RunFailed(f"weights arrived while {len(self._requests)} completions were being sampled")
        self._received, self._adapter = {}, None
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._watched(weights)})
        check_names(self.names, self._received)
        self.llm.reset_prefix_cache()
        self.version = version

    def _watched(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._received[name] = checksum(tensor)
            yield name, tensor

    def adapt(self, tensors: Iterator[tuple[str, Tensor]], write: Callable[[Path, Mapping[str, Tensor]], None], version: int) -> None:
        """Takes in an adapter on top of the weights it holds; `write` makes the folder of files by which vLLM loads one."""
        from vllm.lora.request import LoRARequest

        own = dict(tensors)
        self._received |= {name: checksum(tensor) for name, tensor in own.items()}
        ram = Path("/dev/shm")
        with TemporaryDirectory(prefix="rlkit-adapter-", dir=ram if ram.is_dir() else None) as folder:
            write(Path(folder), own)
            # in place: without it an adapter of a number that is known stays as it was, silently
            self.engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
            self._adapter = LoRARequest("policy", 1, folder)
        self.llm.reset_prefix_cache()
        self.version = version

    def received(self) -> Mapping[str, Tensor]:
        return self._received

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


def name_shared_memory() -> str:
    """On a CPU ranks of one engine share memory under a fixed name, which outlives a killed run and stops the next one: give it a name of
    its own, which is returned, and sweep those of runs that are gone."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    named = [f"{SEGMENT}{os.getpid()}-"]
    dist.broadcast_object_list(named, src=0)
    original = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: named[0] + original(communicator).replace("/", ""))
    for left in Path("/dev/shm").glob(f"*{SEGMENT}*"):
        maker = left.name.partition(SEGMENT)[2].partition("-")[0]
        if maker.isdigit() and not Path("/proc", maker).exists():
            left.unlink(missing_ok=True)
    return named[0]


def load_beneath_adapters() -> None:
    """In vLLM 0.26 what adapters stand on does not go by its own name: a checkpoint would find no place for its tensors."""
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.model_executor.models.utils import AutoWeightsLoader

    def load(layer: Any, weights: Any) -> Any:
        beneath = layer.base_layer
        return (beneath if hasattr(beneath, "load_weights") else AutoWeightsLoader(beneath)).load_weights(weights)

    if not hasattr(BaseLayerWithLoRA, "load_weights"):
        BaseLayerWithLoRA.load_weights = load


def room_for(rank: int) -> int:
    """The smallest room that an adapter of a rank fits into."""
    fitting = [room for room in LORA_RANKS if room >= rank]
    if not fitting:
        raise UserError(
            f"model.lora.rank={rank} is more than the {LORA_RANKS[-1]} that vLLM takes as an adapter; set engine.lora_sync=merged"
        )
    return fitting[0]


def set_environment(world: int) -> None:
    """What vLLM reads from the environment, before it is imported; a value that is set already stays."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(memory_estimate.HOST_KV_CACHE // memory_estimate.GIB),
    }
    if world > 1:
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
