"""Whether a plan fits into the memory of a machine, and the first change that makes it fit where it does not."""

from __future__ import annotations

from rlkit.profiling import memory_estimate as sizes
from rlkit.profiling.host_estimate import estimate_host_peaks
from rlkit.runtime.hardware import HostMemory


def explain_host_excess(job: sizes.Job, processes: int, host: HostMemory) -> str | None:
    """Why so many processes of a run without a GPU do not fit into a host, and what makes them; None where they fit."""
    peaks = estimate_host_peaks(job)
    phase = max(peaks, key=lambda name: peaks[name])
    if processes * peaks[phase] <= host.free:
        return None
    changes = sizes.suggest_changes(job, "resident", host=True)
    change = next((settings for settings, other, _ in changes if processes * max(estimate_host_peaks(other).values()) <= host.free), None)
    return f"the phase {phase} needs {describe_need(peaks[phase], processes)}, and {describe_host(host)}; {describe_change(change)}"


def explain_gpu_excess(plan: sizes.MemoryPlan, gpu: float) -> str | None:
    """Why a plan does not fit a GPU of `gpu` bytes, and what makes it; None where it fits."""
    if plan.fits:
        return None
    need, usable = format_gib(plan.peaks[plan.largest_phase]), format_gib(sizes.USABLE_SHARE * gpu)
    return (
        f"the phase {plan.largest_phase} does not fit: it needs {need}, and {usable} of a GPU can be used; {describe_change(plan.change)}"
    )


def explain_offload_excess(plan: sizes.MemoryPlan, processes: int, host: HostMemory) -> str | None:
    """Why what so many processes with GPUs keep on the host does not fit there; None where it does."""
    if processes * plan.host <= host.free:
        return None
    return f"the host needs {describe_need(plan.host, processes)}, and {describe_host(host)}; start fewer processes on it"


def describe_need(each: float, processes: int) -> str:
    return format_gib(each) if processes == 1 else f"{format_gib(processes * each)} for {processes} processes"


def describe_host(host: HostMemory) -> str:
    return f"this machine has {format_gib(host.total)}, {format_gib(host.free)} of them free"


def describe_change(change: str | None) -> str:
    return f"{change} makes it fit" if change else "no setting makes it fit: take a smaller model or a larger machine"


def format_gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
