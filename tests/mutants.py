"""Applies small faults to a copy of the maths, one at a time, and shows that the tests of the maths see each of them.

    python tests/mutants.py [word ...]      only those whose file or text holds one of the words

Exit code 0: every fault was seen. Each runs in a fork of a process that has torch loaded, so that a fault costs about a second.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ["rlkit", "recipes", "rewards", "pyproject.toml", "tests/ops", "tests/algorithms"]
TESTS = ["tests/ops", "tests/algorithms", *(f"tests/test_{name}.py" for name in ("batching", "metrics", "seeds", "schedule"))]
SLOW = "not no_process"  # starts a Python of its own
SEEN, UNSEEN = 1, 0  # pytest's exit codes: some test failed, all passed

# file under rlkit/, what stands there (once), what stands there instead
MUTANTS: list[tuple[str, str, str]] = [
    ("ops/kl.py", "return logprobs - ref_logprobs", "return ref_logprobs - logprobs"),
    ("ops/kl.py", "0.5 * (logprobs", "1.0 * (logprobs"),
    ("ops/kl.py", "log_r = ref_logprobs - logprobs", "log_r = logprobs - ref_logprobs"),
    ("ops/logprobs.py", "start - 1, i * width + start - 1 + n", "start, i * width + start + n"),
    ("ops/logprobs.py", ") / temperature  #", ") * temperature  #"),
    ("ops/logprobs.py", "entropy = -(logs", "entropy = (logs"),
    ("ops/masking.py", "counts = mask.double()", "counts = torch.ones_like(mask).double()"),
    ("ops/masking.py", "weights = counts / tokens", "weights = counts / counts.sum().clamp(min=1.0)"),
    ("ops/masking.py", ".clamp(min=1.0) * sequences)", ".clamp(min=1.0) * max(mask.shape[0], 1))"),
    ("ops/masking.py", "keepdim=True).clamp(min=1.0)", "keepdim=True).clamp(min=2.0)"),
    ("ops/masking.py", "counts / (fixed_length * sequences)", "counts / fixed_length"),
    ("ops/masking.py", "float(mask.shape[0])", "float(mask.any(-1).sum())"),
    ("ops/masking.py", "torch.where(weights != 0, losses, torch.zeros_like(losses))", "losses"),
    ("ops/masking.py", "grid[i, : row.shape[0]] = row", "grid[i, length - row.shape[0] :] = row"),
    ("ops/returns.py", "(counts - 1.0).clamp", "counts.clamp"),
    ("ops/returns.py", "valid, group, groups)[group].clamp(min=STD", "valid, group * 0, groups)[group * 0].clamp(min=STD"),
    ("ops/returns.py", "group_sums(valid.to(rewards.dtype), group, groups)", "group_sums(torch.ones_like(rewards), group, groups)"),
    ("ops/returns.py", "STD_FLOOR = 1e-6", "STD_FLOOR = 1e-12"),
    ("ops/returns.py", "torch.where(alike[group], torch.zeros_like(centred), centred)", "centred"),
    ("ops/returns.py", "rewards - means[group]", "means[group] - rewards"),
    ("ops/returns.py", "kept = torch.where(valid, rewards, torch.zeros_like(rewards))", "kept = rewards"),
    ("ops/returns.py", "return high <= low", "return high < low"),
    ("ops/surrogate.py", "clamp(1.0 - low, 1.0 + high)", "clamp(1.0 - high, 1.0 + low)"),
    ("ops/surrogate.py", "return -torch.minimum(", "return -torch.maximum("),
    ("ops/surrogate.py", "return -torch.minimum(", "return torch.minimum("),
    ("ops/surrogate.py", "bound < free", "bound > free"),
    ("ops/surrogate.py", "torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))", "logprobs - old_logprobs"),
    ("algorithms/grpo.py", 'if self.scale == "group_std"', 'if self.scale != "group_std"'),
    ("algorithms/grpo.py", "(cut & (log_ratios < 0))", "(cut & (log_ratios > 0))"),
    ("algorithms/grpo.py", "loss = loss + self.kl_coef", "loss = loss - self.kl_coef"),
    ("algorithms/grpo.py", "loss = loss - self.entropy_coef", "loss = loss + self.entropy_coef"),
    ("algorithms/grpo.py", "torch.where(rows.mask, rows.logprobs, rows.ref_logprobs)", "rows.logprobs"),
    ("algorithms/grpo.py", "(rewards, valid, group, groups)[batch.index]", "(rewards, valid, group, groups)[: len(batch.index)]"),
    ("algorithms/grpo.py", ".unsqueeze(-1) * batch.mask", ".unsqueeze(-1) * torch.ones_like(batch.mask)"),
    ("algorithms/grpo.py", "updates_per_step > 1", "updates_per_step > 2"),
    ("algorithms/grpo.py", "self.kl_coef == 0.0 and self.entropy_coef == 0.0", "self.kl_coef == 0.0"),
    ("update.py", "old_logprobs=logprobs.detach() if", "old_logprobs=logprobs if"),
    ("update.py", "token_weights(mask, run.algorithm.reduction, totals", "token_weights(mask, run.algorithm.reduction, unit_totals(mask)"),
    ("update.py", "run.ranks.sum(unit_totals(batch.mask[rows]))", "unit_totals(batch.mask[rows])"),
    ("update.py", "batch.minibatch == minibatch", "batch.minibatch >= 0"),
    ("update.py", "run.policy.idle()", "pass"),
    ("batching.py", "(-costs[i], i)", "(costs[i], i)"),
    ("batching.py", "(len(batches[-1]) + 1) * lengths[batches[-1][0]]", "sum(lengths[i] for i in batches[-1]) + lengths[item]"),
    ("batching.py", "<= budget:", "<= budget + 1:"),
    ("batching.py", "small + (m < larger)", "small + (m > 0)"),
    ("metrics.py", "Mean(self.total + other.total, self.weight + other.weight)", "Mean((self.value + other.value) / 2, 1.0)"),
    ("metrics.py", "float(mask.sum())", "float(mask.numel())"),
    ("seeds.py", '"sample", seed, *key', '"sample", seed, *key[:2]'),
    ("schedule.py", "(update + 1) / self.warmup", "update / self.warmup"),
    ("collate.py", "key=lambda g: g.number", "key=lambda g: -g.number"),
    ("collate.py", "(sample.versions != version).any()", "(sample.versions > version).any()"),
    ("collate.py", "(sample.versions != version).any()", "(sample.versions != version).all()"),
    ("collate.py", "[r is not None for r in rewards]", "[True for r in rewards]"),
]


def main(words: list[str]) -> int:
    """Runs the faults; returns the exit code."""
    chosen = [m for m in MUTANTS if not words or any(word in part for word in words for part in m)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in [*COPIED, *(test for test in TESTS if test.endswith(".py"))]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            source = ROOT / name
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(
                source, copy / name
            )
        if tested(copy) != UNSEEN:
            print("the tests of the maths fail without any fault; run them first", file=sys.stderr)
            return 2
        unseen = [mutant for mutant in chosen if not seen(copy, *mutant)]
    print(f"{len(chosen) - len(unseen)} of {len(chosen)} faults seen")
    return int(bool(unseen))


def seen(copy: Path, file: str, before: str, after: str) -> bool:
    """Whether a test fails once the fault is in the copy; the copy is mended again."""
    place = copy / "rlkit" / file
    text = place.read_text()
    if text.count(before) != 1:
        raise SystemExit(f"rlkit/{file} holds {before!r} {text.count(before)} times, not once; mend the list in {Path(__file__).name}")
    place.write_text(text.replace(before, after))
    code = tested(copy)
    place.write_text(text)
    print(f"{'seen  ' if code == SEEN else 'UNSEEN'} rlkit/{file}: {before}  ->  {after}", flush=True)
    return code == SEEN


def tested(copy: Path) -> int:
    """pytest's exit code over the copy, in a fork."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 3
    try:
        os.chdir(copy)
        sys.dont_write_bytecode = True  # a fault of the same length within the same second would find the old bytecode
        sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tests"))]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        import pytest
        import torch

        torch.set_num_threads(1)
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-k", SLOW, *TESTS]))
        import rlkit

        assert rlkit.__file__ and Path(rlkit.__file__).is_relative_to(copy), "the tests ran on another rlkit"
    finally:
        os._exit(code)


if __name__ == "__main__":
    import pydantic  # noqa: F401 - loaded once here, so that no fork loads it again
    import pytest  # noqa: F401
    import torch  # noqa: F401

    sys.exit(main(sys.argv[1:]))
