"""The memory table of rlkit/docs/memory.md: python -m tests.bench.memory_table"""

from __future__ import annotations

from rlkit.assembly import plan
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.profiling import memory_estimate

TABLE = ("0_5b", "1_5b", "7b", "32b")  # of Qwen2.5


def table() -> str:
    """Predicted GiB of each GPU at the peak, for GRPO with samples of 1,536 tokens in micro-batches of 8,192: Markdown."""
    rows = ["| model | trained | GPUs | ZeRO | kept apart | sync | rollout | train |", "|---|---|---|---|---|---|---|---|"]
    for name in TABLE:
        for rank in ("null", "32"):
            for gpus in (1, 4, 8):
                words = ["recipe=grpo_gsm8k", f"model=qwen2_5_{name}", f"model.lora.rank={rank}", "tokens_per_micro_batch=8192"]
                words += [f"hardware.gpus={gpus}", "hardware.gpu_gib=80", "dry_run=true", "engine.gradient_checkpointing=1"]
                words += [f"engine.zero_stage={2 if gpus == 1 else 3}", f"engine.tensor_parallel={gpus if name == '32b' else 1}"]
                recipe = read_recipe(compose_config(words, None))
                job, gpu = plan.build_job(recipe), plan.find_gpu_memory(recipe)
                assert job is not None and gpu is not None
                found = memory_estimate.plan_memory(job, gpu)
                peaks = " | ".join(f"{size / 2**30:.0f}" for size in found.peaks.values())
                kind = "all" if rank == "null" else f"LoRA {rank}"
                mode_told = found.mode if found.fits else "too large"
                rows.append(f"| Qwen2.5-{name.replace('_', '.').upper()} | {kind} | {gpus} | {job.stage} | {mode_told} | {peaks} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
