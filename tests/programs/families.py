"""What each family of models does in rlkit, with tiny random weights: families.py PAGE [FAMILY ...] writes rlkit/docs/models.md or another.

Each family runs in a process of its own: families.py --one FAMILY FOLDER OUT. It is certified; after three large updates the log-probs of
each sampler are those of the trainer, with all weights trained and with adapters; and what is exported loads as the same model.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from tests.conftest import run
from tests.model_page import ADAPTED, COLUMNS, FAMILIES, write_page

LIMIT = 1e-4  # nats, of the largest difference
STALE = 1e-2  # nats by which the updates must change a sampler that gets no weights
TEMPERATURE, LR, LONGEST = 0.7, 0.03, 64


def main() -> None:
    page, *names = sys.argv[1:]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names or FAMILIES):
            began = time.monotonic()
            found[name] = measure_apart(name, Path(folder, str(i)))
            print(f"{time.monotonic() - began:5.0f} s  {name}: {json.dumps(found[name])}", flush=True)
    write_page(Path(page), found)


def measure_apart(name: str, folder: Path) -> dict[str, str]:
    """By column: "exact", or what is in its way."""
    out = folder / "found.json"
    folder.mkdir()
    ended = run("--one", name, str(folder), str(out), program="families.py", timeout=400, OMP_NUM_THREADS="1")
    if ended.code or not out.is_file():
        return dict.fromkeys(COLUMNS, f"failed: exit code {ended.code}") | {"log": ended.err[-3000:]}
    found: dict[str, str] = json.loads(out.read_text())
    return found


class Family:
    """One family in this process. Needs a process group."""

    def __init__(self, name: str, folder: Path) -> None:
        import torch

        from rlkit.data.renderer import Renderer
        from tests.random_models import save_random_model

        family, settings = FAMILIES[name]
        self.adapted: str | tuple[str, ...] = ADAPTED.get(name, "all-linear")
        self.folder, self.float, self.cpu = folder, torch.float32, torch.device("cpu")
        self.path = str(save_random_model(folder / "model", family, **settings))
        self.eos = Renderer(Path(self.path), offline=True).eos_ids
        self.figures: dict[str, float] = {}

    def check_recipe(self, engine: str) -> None:
        """Raises UserError where a recipe with this model and this rollout engine is refused."""
        from rlkit.errors import UserError
        from rlkit.run import main as run_recipe

        words = ["recipe=grpo_math", f"model.path={self.path}", f"engine.rollout={engine}", "dry_run=true", "hardware.force=true"]
        said = StringIO()
        with redirect_stderr(said), redirect_stdout(StringIO()):
            code = run_recipe([*words, "max_prompt_tokens=40", "max_completion_tokens=24"])
        if code:
            raise UserError(said.getvalue().removeprefix("rlkit: ").strip().replace("\n", "; "))

    def check_packed(self) -> str:
        self.check_recipe("hf")
        from transformers import AutoConfig

        from rlkit.engines.certificate import certify, compare_weights

        config = AutoConfig.from_pretrained(self.path)
        certify(
            config, "causal language model", where="model.path", cache=self.folder / "certificates", checkpoint_every=1, device=self.cpu
        )
        policy = self.build_policy(None)
        return self.judge("packed", compare_weights(policy.model, policy.backend.module, self.cpu))

    def build_policy(self, lora: Any) -> Any:
        from rlkit.engines.learners import PolicyLearner
        from rlkit.engines.rope import pin_rope
        from tests.backends import deepspeed

        policy = PolicyLearner(
            self.path, self.float, backend=deepspeed(1), temperature=TEMPERATURE, offline=True, checkpoint_every=1, lora=lora
        )
        pin_rope(policy.model, LONGEST)
        return policy

    def check_hf(self) -> str:
        policy = self.build_policy(None)
        first = self.build_hf()
        verdict = self.train("hf", policy, first)
        self.check_reference(policy)
        self.policy = policy
        return verdict

    def check_vllm(self) -> str:
        self.check_recipe("vllm")
        return self.train("vLLM", self.build_policy(None), self.build_vllm())

    def check_lora(self) -> str:
        from rlkit.engines.lora import LoraSettings

        policy = self.build_policy(LoraSettings(rank=4, alpha=8.0, targets=self.adapted, dora=False))
        return self.train("LoRA", policy, self.build_hf())

    def check_export(self) -> str:
        """What transformers makes of the exported folder."""
        import torch
        from transformers import AutoModelForCausalLM

        from rlkit.engines import certificate
        from rlkit.engines.rope import pin_rope

        self.policy.export(self.folder / "export")
        model = AutoModelForCausalLM.from_pretrained(self.folder / "export", dtype=self.float, attn_implementation="eager").eval()
        pin_rope(model, LONGEST)
        samples = certificate.build_samples()
        with torch.no_grad():
            plain = certificate.compute_plain(model, samples, self.cpu)
            packed = certificate.compute_packed(self.policy.backend.module, samples, self.cpu)
        return self.judge("export", certificate.measure_distance(packed, plain))

    def build_hf(self) -> Any:
        from rlkit.engines.hf_generate import HFEngine
        from rlkit.engines.rope import pin_rope

        engine = HFEngine(self.path, self.float, device=self.cpu, eos=self.eos, pad=256, offline=True)
        pin_rope(engine.model, LONGEST)
        return engine

    def build_vllm(self) -> Any:
        from transformers import AutoConfig

        from rlkit.engines.vllm import VLLMEngine
        from rlkit.engines.vllm_overrides import build_overrides

        return VLLMEngine(
            self.path,
            "float32",
            names=self.policy.names,
            max_model_len=LONGEST,
            eos=self.eos,
            world=1,
            sleeps=False,
            extra={"hf_overrides": build_overrides(AutoConfig.from_pretrained(self.path), self.float)},
        )

    def train(self, column: str, policy: Any, engine: Any) -> str:
        """Three large updates, and what sampler and trainer say before the first, before the last and after the last weights are sent."""
        from rlkit.engines.weight_sync import WeightSync, send_merged, send_to_module

        uncompared: list[str] = []
        send = WeightSync(send_merged if column == "vLLM" else send_to_module, lambda names: [names], uncompared.append)
        self.begun: tuple[Any, Any] | None = None
        for version in range(3):
            send(policy, engine, version)
            samples = self.sample(engine, version)
            if self.begun is None:
                self.begun = samples, policy.logprobs(samples, 24)[0]
                worst = self.measure(policy, samples)
            with policy.enable_grad():
                policy.backward((1.0 if version % 2 else -1.0) * policy.logprobs(samples, 24)[0].sum() / 100)
            assert policy.step(LR).applied
        self.figures[f"{column} stale"] = stale = self.measure(policy, self.sample(engine, 3))
        send(policy, engine, 3)
        verdict = self.judge(column, max(worst, self.measure(policy, self.sample(engine, 3))))
        if uncompared:
            return f"failed: {uncompared[0]}"
        return verdict if stale > STALE else f"failed: three updates changed log-probs by {stale:.2g} nats alone"

    def sample(self, engine: Any, seed: int) -> list[Any]:
        from rlkit.types import Key, Request, Sampling

        for i in range(12):
            prompt = tuple(40 + (7 * i + j) % 90 for j in range(3 + i % 5 + 24 * (i % 4 == 3)))
            engine.add(Request(Key(i, 0, 0), prompt, Sampling(temperature=TEMPERATURE, max_tokens=24), 100 * seed + i))
        finished = []
        while engine.pending:
            finished += engine.advance()
        return sorted(finished, key=lambda sample: sample.key)

    def measure(self, policy: Any, samples: list[Any]) -> float:
        """The largest difference of log-probs between trainer and sampler."""
        from rlkit.ops.masking import pad_rows

        return float((policy.logprobs(samples, 24)[0] - pad_rows([s.rollout_logprobs for s in samples], 24, 0.0)).abs().max())

    def check_reference(self, policy: Any) -> None:
        """A reference that is loaded after the updates is what the policy was before them."""
        from rlkit.engines.reference import ReferenceModel
        from rlkit.engines.rope import pin_rope

        assert self.begun is not None
        reference = ReferenceModel(self.path, self.float, temperature=TEMPERATURE, device=self.cpu, offline=True)
        pin_rope(reference.scorer, LONGEST)
        samples, begun = self.begun
        assert (difference := float((reference.logprobs(samples, 24)[0] - begun).abs().max())) < LIMIT, difference
        assert float((policy.logprobs(samples, 24)[0] - begun).abs().max()) > STALE

    def judge(self, column: str, difference: float) -> str:
        self.figures[column] = difference
        return "exact" if difference < LIMIT else f"failed: differs by {difference:.2g} nats"


def measure_here(name: str, folder: Path, out: Path) -> None:
    from rlkit.errors import UserError
    from rlkit.runtime.ranks import Ranks

    Ranks()
    found: dict[str, Any] = {}
    family: Family | None = None
    checks: dict[str, Callable[[], str]] = {}
    try:
        family = Family(name, folder)
        checks = {"hf": family.check_hf, "LoRA": family.check_lora, "export": family.check_export, "vLLM": family.check_vllm}
        found["packed"] = family.check_packed()
    except UserError as error:
        found["packed"] = f"refused: {error}"
    for column, check in checks.items() if found["packed"] == "exact" else ():
        try:
            found[column] = check()
        except UserError as error:
            found[column] = f"refused: {error}"
        except Exception as error:  # noqa: BLE001 of any kind, which the page shows and the test refuses
            traceback.print_exc()
            found[column] = f"failed: {type(error).__name__}: {error}"[:300]
    found["figures"] = family.figures if family else {}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        measure_here(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        from rlkit.run import exit_process

        exit_process(0)
    main()
