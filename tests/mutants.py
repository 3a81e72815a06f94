"""Applies small faults to a copy of the maths, one at a time, and shows that the tests of the maths see each of them.

    python tests/mutants.py [word ...]      only those whose file or text holds one of the words
    python tests/mutants.py --changed       only those of files that are not as they were when all of theirs were last seen
    python tests/mutants.py --record        all, and writes down the files whose faults were all seen: tests/mutants.lock

Exit code 0: every fault was seen. Each runs in a fork of a process that has torch loaded, so that a fault costs about a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_suffix(".lock")  # {file under rlkit/: digest of it and of its faults}
COPIED = ["rlkit", "recipes", "rewards", "pyproject.toml", "tests/ops", "tests/algorithms"]
TESTS = [
    "tests/ops",
    "tests/algorithms",
    *("tests/test_metrics.py", "tests/test_seeds.py", "tests/rollout/test_collector.py", "tests/rollout/test_carry_over.py"),
    *("tests/profiling/test_memory_peak.py", "tests/updates/test_lr_schedule.py", "tests/updates/test_collate.py"),
]
SLOW = "not no_process and not of_a_process"  # start a Python of their own
ONLINE = [f"tests/algorithms/test_{name}.py" for name in ("online", "grpo", "objective")]
OFFLINE = ["tests/algorithms/test_offline.py"]
CARRY_OVER = ["tests/rollout/test_carry_over.py"]
# The tests that a fault in these meets first, beside those named like the file.
AIMED = {
    **dict.fromkeys(("grpo", "rloo", "remax", "reinforce_pp", "ppo", "opd", "credit", "objective", "types"), ONLINE),
    **dict.fromkeys(("online_update", "optimizer_step", "collate", "values"), ONLINE),
    **dict.fromkeys(("offline", "offline_update", "reference_cache", "dpo", "kto", "sft", "reward_model"), OFFLINE),
    "surrogate": ["tests/ops/test_policy_losses.py"],
    "returns": ["tests/ops/test_credit.py"],
    **dict.fromkeys(("collector", "open_groups", "sampler", "base"), CARRY_OVER),
    **dict.fromkeys(("masking", "metrics"), OFFLINE),
}
SAID = "said.txt"  # what the tests of the last fault printed, in the copy
SEEN, UNSEEN = 1, 0  # pytest's exit codes: some test failed, all passed

# file under rlkit/, what stands there (once), what stands there instead
MUTANTS: list[tuple[str, str, str]] = [
    ("ops/kl.py", "return logprobs - ref_logprobs", "return ref_logprobs - logprobs"),
    ("ops/kl.py", "0.5 * (logprobs", "1.0 * (logprobs"),
    ("ops/kl.py", "log_r = ref_logprobs - logprobs", "log_r = logprobs - ref_logprobs"),
    ("ops/logprobs.py", "build_ranges(firsts, lengths) - 1", "build_ranges(firsts, lengths)"),
    ("ops/logprobs.py", ") / temperature  #", ") * temperature  #"),
    ("ops/logprobs.py", "entropy = -(logs", "entropy = (logs"),
    ("ops/logprobs.py", "(part.entropy - mass + log_mass)", "part.entropy"),
    ("ops/logprobs.py", "part.top - top + part.log_mass", "part.log_mass"),
    ("ops/logprobs.py", "top - mean - largest.log()", "-largest.log()"),
    ("ops/logprobs.py", "one + bent * (entropy - log_mass)", "one - bent * log_mass"),
    ("ops/logprobs.py", " / mass / ctx.temperature", " / mass"),
    ("ops/logprobs.py", "torch.where(inside, -own, 0.0)", "-own"),
    ("ops/logprobs.py", "by_entropy if ctx.used.entropy else None", "None"),
    ("ops/masking.py", "counts = mask.double()", "counts = torch.ones_like(mask).double()"),
    ("ops/masking.py", "weights = counts / tokens", "weights = counts / counts.sum().clamp(min=1.0)"),
    ("ops/masking.py", ".clamp(min=1.0) * sequences)", ".clamp(min=1.0) * max(mask.shape[0], 1))"),
    ("ops/masking.py", "keepdim=True).clamp(min=1.0)", "keepdim=True).clamp(min=2.0)"),
    ("ops/masking.py", "counts / (fixed_length * sequences)", "counts / fixed_length"),
    ("ops/masking.py", "float(mask.shape[0])", "float(mask.any(-1).sum())"),
    ("ops/masking.py", "torch.where(weights != 0, losses, torch.zeros_like(losses))", "losses"),
    ("ops/masking.py", "grid[i, : row.shape[0]] = row", "grid[i, length - row.shape[0] :] = row"),
    ("ops/returns.py", "/ (counts - 1.0).clamp(min=1.0)).sqrt()", "/ counts.clamp(min=1.0)).sqrt()"),
    ("ops/returns.py", "valid, group, groups)[group].clamp(min=STD", "valid, group * 0, groups)[group * 0].clamp(min=STD"),
    ("ops/returns.py", "valid.to(rewards.dtype), group, groups)  # [groups]", "torch.ones_like(rewards), group, groups)"),
    ("ops/returns.py", "STD_FLOOR = 1e-6", "STD_FLOOR = 1e-12"),
    ("ops/returns.py", "torch.where(alike[group], torch.zeros_like(centred), centred)", "centred"),
    (
        "ops/returns.py",
        "rewards - group_mean(rewards, valid, group, groups)[group]",
        "group_mean(rewards, valid, group, groups)[group] - rewards",
    ),
    (
        "ops/returns.py",
        "group_mean(rewards, valid, group, groups).clamp(min=MEAN_FLOOR)",
        "group_std(rewards, valid, group, groups).clamp(min=MEAN_FLOOR)",
    ),
    ("ops/returns.py", "MEAN_FLOOR = 1e-6", "MEAN_FLOOR = 1e-30"),
    ("ops/returns.py", "centre_by_group(rewards, valid, group, groups) / means[group]", "rewards / means[group]"),
    ("ops/returns.py", "kept = torch.where(valid, rewards, torch.zeros_like(rewards))", "kept = rewards"),
    ("ops/returns.py", "return high <= low", "return high < low"),
    ("ops/surrogate.py", "bound = ratio.clamp(1.0 - low, 1.0 + high)", "bound = ratio.clamp(1.0 - high, 1.0 + low)"),
    ("ops/surrogate.py", "return -torch.minimum(", "return -torch.maximum("),
    ("ops/surrogate.py", "return -torch.minimum(", "return torch.minimum("),
    ("ops/surrogate.py", "bound < free", "bound > free"),
    ("ops/surrogate.py", "torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))", "logprobs - old_logprobs"),
    ("ops/kl.py", "error = (measured - target)", "error = (target - measured)"),
    ("ops/kl.py", "max(error, -LIMIT), LIMIT)", "max(error, -LIMIT), 1.0)"),
    ("ops/surrogate.py", "log_ratios.sum(-1, keepdim=True) / mask.sum", "log_ratios.sum(-1, keepdim=True) / mask.long().cumsum(-1).sum"),
    ("ops/surrogate.py", "(advantages < 0) & (loss > ceiling)", "loss > ceiling"),
    ("ops/surrogate.py", "ceiling = -most * advantages", "ceiling = most * advantages"),
    ("ops/surrogate.py", "ratio = log_ratios.detach().clamp(max=CEILING).exp()\n    weight", "ratio = log_ratios.exp()\n    weight"),
    ("ops/surrogate.py", "weight = ratio.clamp(1.0 - low, 1.0 + high)", "weight = ratio"),
    ("ops/surrogate.py", "return -ratio * advantages * logprobs", "return -advantages * logprobs"),
    ("ops/surrogate.py", "masked_fill(advantages > 0, positive)", "masked_fill(advantages < 0, positive)"),
    ("ops/surrogate.py", "-(4.0 / tau)", "-4.0"),
    ("ops/surrogate.py", "log_ratios.clamp(max=SATURATED).exp()", "log_ratios.exp()"),
    (
        "ops/surrogate.py",
        "torch.where((ratio > cap) | (ratio < floor), torch.zeros_like(ratio), ratio)",
        "torch.where((ratio >= cap) | (ratio < floor), torch.zeros_like(ratio), ratio)",
    ),
    ("ops/surrogate.py", "if drop else ratio.clamp(max=cap)", "if drop else ratio"),
    ("ops/surrogate.py", "(ratio > cap) | (ratio < floor)", "(ratio > cap) | (ratio <= floor)"),
    ("ops/surrogate.py", "(ratio > cap) | (ratio < floor)", "(ratio > cap) & (ratio < floor)"),
    ("ops/surrogate.py", "moved = logprobs.detach().exp() - sampled.exp()", "moved = logprobs.detach() - sampled"),
    ("ops/surrogate.py", "moved = logprobs.detach().exp() - sampled.exp()", "moved = sampled.exp() - logprobs.detach().exp()"),
    ("ops/surrogate.py", "(advantages > 0) & (moved > high)", "(advantages > 0) & (moved.abs() > high)"),
    ("ops/surrogate.py", "(advantages < 0) & (moved < -low)", "(advantages < 0) & (moved < -high)"),
    ("ops/surrogate.py", "(moved < -low)", "(moved < low)"),
    ("ops/surrogate.py", "torch.where(cut, torch.zeros_like(logprobs), -advantages * logprobs)", "-advantages * logprobs"),
    ("ops/returns.py", "* counts / (counts - 1.0).clamp", "* (counts - 1.0) / counts.clamp"),
    ("ops/returns.py", "kept.flip(-1).cumsum(-1).flip(-1)", "kept.cumsum(-1)"),
    ("ops/returns.py", "mask & (later == 1)", "later == 1"),
    ("ops/returns.py", "mask & (later == 1)", "mask & (later == later.max(-1, keepdim=True).values)"),
    ("ops/returns.py", "delta + gamma * lam * following, following)", "delta + gamma * following, following)"),
    ("ops/returns.py", "torch.where(counts, delta + gamma * lam * following, following)", "delta + gamma * lam * following"),
    ("ops/returns.py", "value = torch.where(counts, values[:, t], value)", "value = values[:, t]"),
    ("ops/returns.py", "rewards[:, t] + gamma * value - values", "rewards[:, t] + value - values"),
    ("ops/returns.py", "reversed(range(values.shape[1]))", "reversed(range(values.shape[1] - 1))"),
    ("ops/values.py", "torch.maximum(free, bound)", "torch.minimum(free, bound)"),
    ("ops/values.py", "(values - old_values).clamp(-clip, clip)", "(values - old_values).clamp(-clip)"),
    ("ops/preference.py", "return -logsigmoid(beta * margin)", "return -logsigmoid(margin)"),
    ("ops/preference.py", "margin) - label_smoothing * logsigmoid(-beta", "margin) + label_smoothing * logsigmoid(-beta"),
    ("ops/preference.py", "relu(1.0 - beta * margin)", "relu(-beta * margin)"),
    ("ops/preference.py", "1.0 / (2.0 * beta)", "1.0 / beta"),
    ("ops/preference.py", "/ (1.0 - 2.0 * label_smoothing)", "/ (1.0 - label_smoothing)"),
    ("ops/preference.py", "logsigmoid(beta * (chosen - rejected) - gamma)", "logsigmoid(beta * (chosen - rejected) + gamma)"),
    ("ops/preference.py", "log_odds(chosen) - log_odds(rejected)", "chosen - rejected"),
    ("ops/preference.py", "baseline.detach())", "0.0)"),
    ("ops/preference.py", ".clamp(min=0.0).detach()", ".detach()"),
    ("algorithms/offline.py", "torch.where(rows.mask, rows.outputs, 0.0)", "rows.outputs"),
    ("algorithms/offline.py", "rows.mask.sum(-1).clamp(min=1)", "rows.mask.shape[1]"),
    ("algorithms/offline.py", "sum_logprobs(rows) - rows.reference", "sum_logprobs(rows) + rows.reference"),
    ("algorithms/offline.py", "values.view(-1, 2).unbind(-1)", "values.view(2, -1).unbind(0)"),
    ("algorithms/offline.py", "0.5 * (margins == 0).double()", "1.0 * (margins == 0).double()"),
    ("algorithms/offline.py", "% 2 == 0", "% 2 == 1"),
    ("algorithms/dpo.py", "else average_logprobs(rows)", "else sum_logprobs(rows)"),
    ("algorithms/dpo.py", "self.label_smoothing >= 0.5", "self.label_smoothing > 0.5"),
    ("algorithms/dpo.py", "self.loss not in REFERENCE_FREE", 'self.loss != "simpo"'),
    ("algorithms/dpo.py", "preference.robust_dpo_loss(chosen - rejected", "preference.conservative_dpo_loss(chosen - rejected"),
    ("algorithms/kto.py", "self.beta, self.desirable_weight, self.undesirable_weight)", "self.beta, 1.0, self.desirable_weight)"),
    ("algorithms/kto.py", "torch.where(good, x - rows.baseline, rows.baseline - x)", "torch.where(good, x, -x)"),
    ("algorithms/sft.py", "torch.where(rows.mask, -rows.outputs, 0.0)", "-rows.outputs / rows.mask.sum(-1, keepdim=True)"),
    ("algorithms/reward_model.py", "preference.dpo_loss(chosen - rejected, 1.0)", "preference.dpo_loss(chosen - rejected, 0.1)"),
    ("ops/masking.py", "1.0 / max(total, 1)", "1.0 / max(losses.shape[0], 1)"),
    ("updates/offline_update.py", "uniform_weights(losses, len(self.units))", "uniform_weights(losses, len(units))"),
    (
        "updates/offline_update.py",
        "for u in units for s in u.samples)\n        self.totals",
        "for u in units[:1] for s in u.samples)\n        self.totals",
    ),
    ("updates/offline_update.py", "rank[i] + len(order) // 2", "rank[i]"),
    ("updates/offline_update.py", "if o.prompt != own.prompt", "if o is not own"),
    ("updates/offline_update.py", "key=lambda i: self.units[i].samples[0].key", "key=lambda i: i"),
    ("updates/offline_update.py", "updater.ranks.all_reduce_sum(total)", "total"),
    ("updates/reference_cache.py", "numbers[chosen] = logprobs.double().sum(-1)", "numbers[chosen] = logprobs.double().mean(-1)"),
    ("updates/reference_cache.py", "digest.update(tensor.detach()", "str(tensor.detach()"),
    ("updates/reference_cache.py", "(versions, ranks, budget, len(names))", "(versions, ranks, len(names))"),
    ("metrics.py", "(p + z * z / (2 * n))", "(p + z / (2 * n))"),
    ("algorithms/grpo.py", "= torch.zeros_like(group)", "= group"),
    ("algorithms/grpo.py", '"batch_std": normalise_by_batch_std', '"batch_std": returns.normalise_by_group'),
    ("algorithms/grpo.py", '"group_mean": normalise_by_group_mean', '"group_mean": returns.normalise_by_group'),
    ("algorithms/grpo.py", "lowest < -returns.MEAN_FLOOR", "lowest < -1.0"),
    ("algorithms/grpo.py", 'self.kl_coef > 0.0 and self.kl_in == "reward"', 'self.kl_coef > 1.0 and self.kl_in == "reward"'),
    ("algorithms/grpo.py", '"none": returns.centre_by_group', '"none": returns.normalise_by_group'),
    ("algorithms/grpo.py", "step.groups)[batch.index]", "step.groups)[: len(batch.index)]"),
    ("algorithms/grpo.py", "batch.rewards - penalty.samples", "batch.rewards"),
    ("algorithms/rloo.py", "returns.leave_one_out", "returns.centre_by_group"),
    ("algorithms/rloo.py", "batch.rewards - penalty.samples", "batch.rewards + penalty.samples"),
    ("algorithms/remax.py", "- batch.baseline", "- batch.rewards.mean()"),
    ("algorithms/remax.py", "batch.valid & ~batch.baseline.isnan()", "~batch.baseline.isnan()"),
    ("algorithms/remax.py", "greedy=True", "greedy=False"),
    ("algorithms/reinforce_pp.py", "batch.mask) - penalty.tokens", "batch.mask)"),
    (
        "algorithms/reinforce_pp.py",
        "whiten(returns.reward_to_go(rewards, mask), mask, peers)",
        "whiten(returns.reward_to_go(rewards, mask), batch.mask, peers)",
    ),
    ("algorithms/ppo.py", "torch.where(batch.valid.unsqueeze(-1), advantages + before, torch.nan)", "advantages + before"),
    ("algorithms/ppo.py", "advantages + before", "advantages"),
    ("algorithms/ppo.py", "        if self.whiten:\n", "        if not self.whiten:\n"),
    ("algorithms/opd.py", "teacher.double() - old.double()", "old.double() - teacher.double()"),
    ("algorithms/opd.py", "torch.where(batch.mask, teacher.double() - old.double(), 0.0)", "teacher.double() - old.double()"),
    ("algorithms/opd.py", "signal.clamp(-self.clip_signal, self.clip_signal)", "signal"),
    ("algorithms/opd.py", "self.teacher_coef * held", "held"),
    ("algorithms/opd.py", "returns.leave_one_out", "returns.centre_by_group"),
    ("algorithms/opd.py", "step.groups)[batch.index]", "step.groups)[: len(batch.index)]"),
    ("algorithms/opd.py", " - penalty.tokens", ""),
    ("algorithms/opd.py", "peers.all_reduce_sum(sums)", "sums"),
    ("algorithms/opd.py", "old_logprobs=True, ", ""),
    ("algorithms/opd.py", "rewards=False", "rewards=True"),
    ("updates/online_update.py", "self._score(batch, self.teacher, ", "self._score(batch, self.policy, "),
    ("algorithms/objective.py", "known = mask & ~returned.isnan()", "known = ~returned.isnan()"),
    ("algorithms/objective.py", "0 < steps <= self.critic_warmup_steps", "0 < steps < self.critic_warmup_steps"),
    ("algorithms/objective.py", "effective_share(weights, rows.mask)", "effective_share(raw, rows.mask)"),
    (
        "algorithms/credit.py",
        "peers.all_reduce_sum(torch.stack([kept.sum(), mask.sum().to(kept.dtype)]))",
        "torch.stack([kept.sum(), mask.sum().to(kept.dtype)])",
    ),
    ("algorithms/credit.py", "peers.all_reduce_sum(centred.square().sum())", "centred.square().sum()"),
    ("algorithms/credit.py", "(count - 1.0).clamp(min=1.0)", "count.clamp(min=1.0)"),
    ("algorithms/credit.py", "nothing if bool(std <= ROUNDING * mean.abs()) else centred", "centred"),
    ("algorithms/credit.py", "total / batch.size", "total / tokens"),
    ("algorithms/credit.py", "if tokens:", "if tokens or batch.size:"),
    ("algorithms/credit.py", "state.kl_coef if isinstance(state, KLState) else config.kl_coef", "config.kl_coef"),
    ("algorithms/credit.py", "k1 = torch.where(batch.mask, kl.k1(", "k1 = torch.where(batch.mask | True, kl.k1("),
    ("algorithms/credit.py", "torch.where(batch.mask, grid.float(), 0.0)", "grid.float() * torch.ones_like(batch.mask)"),
    ("algorithms/objective.py", "(log_ratios.detach().exp() - 1.0).abs()", "log_ratios.detach().abs()"),
    ("algorithms/objective.py", "(cut & (log_ratios < 0))", "(cut & (log_ratios > 0))"),
    ("algorithms/objective.py", "loss = loss + (self.kl_coef", "loss = loss - (self.kl_coef"),
    ("algorithms/objective.py", "self.kl_coef if rows.kl_coef is None else rows.kl_coef", "self.kl_coef"),
    ("algorithms/objective.py", "loss = loss - self.entropy_coef", "loss = loss + self.entropy_coef"),
    ("algorithms/objective.py", "torch.where(rows.mask, rows.logprobs, rows.ref_logprobs)", "rows.logprobs"),
    ("algorithms/objective.py", "updates_per_step > 1", "updates_per_step > 2"),
    ("algorithms/objective.py", "self.entropy_coef == 0.0 and not (", "not ("),
    ("algorithms/objective.py", "log_ratio(trained, rows.rollout_logprobs", "log_ratio(rows.rollout_logprobs, trained"),
    ("algorithms/objective.py", 'rows.logprobs if self.loss == "dppo" else rows.old_logprobs', "rows.logprobs"),
    ("algorithms/objective.py", 'rows.logprobs if self.loss == "dppo" else rows.old_logprobs', "rows.old_logprobs"),
    ("algorithms/objective.py", 'rows.rollout_logprobs if self.loss == "dppo" else rows.old_logprobs', "rows.old_logprobs"),
    (
        "algorithms/objective.py",
        "rows.advantages, config.clip_low, config.clip_high)\n\n\ndef compute_reinforce",
        "rows.advantages, config.clip_high, config.clip_low)\n\n\ndef compute_reinforce",
    ),
    ("algorithms/objective.py", 'self.loss == "dppo" and self.correction == "none"', "False"),
    ("algorithms/objective.py", 'self.correction_floor > 0.0 and self.correction != "mask"', "False"),
    ("algorithms/objective.py", 'max_lag and self.correction == "none"', "False"),
    ("algorithms/objective.py", "loss = loss * weights", "loss = loss / weights"),
    ("algorithms/objective.py", 'self.correction_level == "sequence"', 'self.correction_level == "token"'),
    ("algorithms/objective.py", 'self.correction == "mask", self.correction_floor', "False, self.correction_floor"),
    ("algorithms/objective.py", 'self.correction == "mask", self.correction_floor', 'self.correction == "mask"'),
    ("metrics.py", "self.mean**2 + self.squares / self.count", "self.mean**2 + self.squares"),
    ("algorithms/objective.py", 'self.kl_in == "reward" or self.kl_target is not None)', 'self.kl_in == "reward")'),
    ("updates/online_update.py", "old_logprobs=logprobs.detach() if", "old_logprobs=logprobs if"),
    ("updates/online_update.py", "self.algorithm.reduction, totals", "self.algorithm.reduction, count_units(mask)"),
    ("updates/online_update.py", "self.ranks.all_reduce_sum(count_units(batch.mask[rows]))", "count_units(batch.mask[rows])"),
    ("updates/online_update.py", "batch.minibatch == minibatch", "batch.minibatch >= 0"),
    ("updates/optimizer_step.py", "loss.learner.idle()", "pass"),
    (
        "updates/online_update.py",
        "self.ranks.merge_metrics(self.logprob_check.compare(old, batch.rollout_logprobs, batch.own))",
        "self.logprob_check.compare(old, batch.rollout_logprobs, batch.own)",
    ),
    ("updates/online_update.py", "lr(count.updates - self.critic_warmup)", "lr(count.updates)"),
    ("rollout/collector.py", "len(rounds) <= (self.max_refills or 0)", "len(rounds) < (self.max_refills or 1)"),
    ("rollout/filters.py", "in group.samples if s.reward is not None]", "in group.samples]"),
    ("rollout/filters.py", "len(grades) != 1 and ", ""),
    ("rollout/collector.py", "has_signal(group, self.graded_by)", "True"),
    ("rollout/collector.py", "-missing * drawn // found", "-missing"),
    ("rollout/collector.py", "indices[: self.prompts_per_step]", "indices[-self.prompts_per_step :]"),
    ("rollout/collector.py", "kept, left_out = self._shard(self.surplus), list[Group]()", "kept, left_out = [], list[Group]()"),
    ("rollout/collector.py", "age=g.age + 1", "age=g.age"),
    ("rollout/collector.py", "[*waiting, *(OpenGroup(index, prompt)", "[*(OpenGroup(index, prompt)"),
    ("rollout/collector.py", "Quota(wanted, self.carried_lag)", "Quota(wanted, self.carried_lag + 1)"),
    ("rollout/collector.py", "Quota(wanted, self.carried_lag)", "Quota(wanted + 1, self.carried_lag)"),
    ("rollout/open_groups.py", "sample.stop is not Stop.ABORTED}", "True}"),
    ("rollout/open_groups.py", "group.age >= max_age and", "group.age > max_age and"),
    ("rollout/open_groups.py", "if key in known)", "if key in self.finished)"),
    ("rollout/sampler.py", "0 if begun is None else len(begun.tokens)", "0"),
    ("rollout/sampler.py", "of_sample[key], seed, begun)", "of_sample[key], seed)"),
    ("rollout/sampler.py", "complete >= quota.complete and not waited_for", "complete >= quota.complete"),
    ("rollout/sampler.py", "if quota is None else progress.list_members(sample.key)", ""),
    ("engines/base.py", "versions=torch.cat([begun.versions, own.versions])", "versions=torch.cat([own.versions, begun.versions])"),
    ("types.py", "self.sampling.max_tokens - (0 if self.begun is None else len(self.begun.tokens))", "self.sampling.max_tokens"),
    ("updates/collate.py", "grid[row, place] += reward", "grid[row, place] = reward / 2"),
    ("algorithms/ppo.py", "batch.rewards - turns.sum(-1)", "batch.rewards"),
    ("types.py", "self.mask & (self.lag == 0)", "self.mask & (self.lag == 0).all(-1, keepdim=True)"),
    ("updates/online_update.py", "compare(rows.old_logprobs, rollout_logprobs, own)", "compare(rows.old_logprobs, rollout_logprobs, mask)"),
    ("updates/collate.py", " or bool((lag < 0).any())", ""),
    ("updates/collate.py", "torch.where(sample.mask, version - sample.versions.long(), 0)", "version - sample.versions.long()"),
    ("updates/collate.py", "bool((lag > max_lag).any())", "bool((lag > max_lag).all())"),
    (
        "updates/collate.py",
        "lag=pad_rows([compute_lag(s, version) for s in samples]",
        "lag=pad_rows([compute_lag(s, version).amax().expand(len(s.tokens)) for s in samples]",
    ),
    ("ops/batching.py", "(-costs[i], i)", "(costs[i], i)"),
    ("ops/batching.py", "room[last] -= prompt + completion", "pass"),
    ("ops/batching.py", "room.append(budget)", "room.append(budget + 1)"),
    ("ops/batching.py", "prompt + completion <= left", "prompt + completion <= left + 1"),
    ("ops/batching.py", "completion <= room[last]", "completion <= room[last] + 1"),
    ("ops/batching.py", "                prompt = 0\n", "                pass\n"),
    ("ops/batching.py", "busiest < best[0]", "busiest <= best[0]"),
    ("ops/batching.py", "(-sizes[i].completion, i)", "(sizes[i].completion, i)"),
    ("ops/batching.py", "len(sample.prompt), len(sample.tokens)", "0, len(sample.tokens)"),
    ("ops/batching.py", "small + (m < larger)", "small + (m > 0)"),
    ("metrics.py", "Mean(self.total + other.total, self.weight + other.weight)", "Mean((self.value + other.value) / 2, 1.0)"),
    ("metrics.py", "Mean(sum_over_mask(values, mask), mask.sum().double())", "Mean(sum_over_mask(values, mask), mask.numel())"),
    ("seeds.py", '"sample", seed, *key', '"sample", seed, *key[:2]'),
    ("updates/lr_schedule.py", "(update + 1) / self.warmup", "update / self.warmup"),
    ("updates/collate.py", "all(g.greedy for g in groups)", "any(baselines)"),
    ("updates/collate.py", "key=lambda g: g.index", "key=lambda g: -g.index"),
    ("updates/collate.py", "[r is not None for r in rewards]", "[True for r in rewards]"),
    ("profiling/memory_peak.py", "read_peak() - self._asleep", "read_peak()"),
    ("profiling/memory_peak.py", "self._asleep += read_reserved", "self._asleep = read_reserved"),
    ("profiling/memory_peak.py", "max(self._highest, read_peak()", "max(0.0, read_peak()"),
    ("profiling/memory_peak.py", "memory_reserved() + free", "memory_reserved() - free"),
]


def main(words: list[str]) -> int:
    """Runs the faults; returns the exit code."""
    record = words == ["--record"]
    if record or words == ["--changed"]:
        known = {} if record or not LOCK.is_file() else json.loads(LOCK.read_text())
        chosen = [m for m in MUTANTS if known.get(m[0]) != digest(m[0])]
    else:
        chosen = [m for m in MUTANTS if not words or any(word in part for word in words for part in m)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for name in [*COPIED, *(test for test in TESTS if test.endswith(".py"))]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            source = ROOT / name
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(
                source, copy / name
            )
        if tested(copy, TESTS) != UNSEEN:
            print(
                (copy / SAID).read_text() + "the tests of the maths fail without any fault in their copy; mend them first", file=sys.stderr
            )
            return 2
        unseen = [mutant for mutant in chosen if not seen(copy, *mutant)]
    print(f"{len(chosen) - len(unseen)} of {len(chosen)} faults seen")
    if record:
        seen_all = sorted({file for file, *_ in MUTANTS} - {file for file, *_ in unseen})
        LOCK.write_text(json.dumps({file: digest(file) for file in seen_all}, indent=0) + "\n")
    return int(bool(unseen))


def digest(file: str) -> str:
    """Of a file under rlkit/ and its faults."""
    faults = [list(m[1:]) for m in MUTANTS if m[0] == file]
    return hashlib.sha256((ROOT / "rlkit" / file).read_bytes() + json.dumps(faults).encode()).hexdigest()[:16]


def seen(copy: Path, file: str, before: str, after: str) -> bool:
    """Whether a test fails once the fault is in the copy; the copy is mended again."""
    place = copy / "rlkit" / file
    text = place.read_text()
    if text.count(before) != 1:
        raise SystemExit(f"rlkit/{file} holds {before!r} {text.count(before)} times, not once; mend the list in {Path(__file__).name}")
    place.write_text(text.replace(before, after))
    first = [name for name in [*named(copy, place.stem), *AIMED.get(place.stem, [])] if (copy / name).is_file()]
    code = tested(copy, first) if first else UNSEEN
    if code == UNSEEN:
        code = tested(copy, TESTS)
    place.write_text(text)
    print(f"{'seen  ' if code == SEEN else 'UNSEEN'} rlkit/{file}: {before}  ->  {after}", flush=True)
    return code == SEEN


def named(copy: Path, stem: str) -> list[str]:
    """The test files called like a file."""
    return [str(path.relative_to(copy)) for path in sorted((copy / "tests").rglob(f"test_{stem}.py"))]


def tested(copy: Path, tests: list[str]) -> int:
    """pytest's exit code over the copy, in a fork."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 3
    try:
        os.chdir(copy)
        sys.dont_write_bytecode = True  # a fault of the same length within the same second would find the old bytecode
        sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tests"))]
        said = os.open(SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        import pytest
        import torch

        torch.set_num_threads(1)
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "-k", SLOW, *tests]))
        import rlkit

        assert rlkit.__file__ and Path(rlkit.__file__).is_relative_to(copy), "the tests ran on another rlkit"
    finally:
        os._exit(code)


if __name__ == "__main__":
    import pydantic  # noqa: F401 - loaded once here, so that no fork loads it again
    import pytest  # noqa: F401
    import torch  # noqa: F401

    sys.exit(main(sys.argv[1:]))
