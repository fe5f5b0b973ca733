"""The place of this process among those that a launcher has started: torchrun, a step of Slurm, or Open MPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_SPECIAL_STEPS = 4_294_967_000
"""Slurm numbers the steps that are no job steps, such as an interactive shell, from the largest 32-bit number down."""


class Rank(NamedTuple):
    """The place of a process among those of a launcher."""

    number: int
    """0 is the driver."""
    world: int
    """The number of processes."""
    local: int
    """The place among the processes on the same machine."""
    local_count: int
    job: str
    """The text that tells the launcher's run from all others, its restarts included."""


def rank_of(environment: Mapping[str, str]) -> Rank | None:
    """Returns the place of a process with this environment; None for one that is alone.

    Sources: torchrun's documentation ("Environment Variables"), srun(1) ("OUTPUT ENVIRONMENT VARIABLES"), and the FAQ
    of Open MPI ("What environment variables does Open MPI set").
    """
    for found in (_torchrun(environment), _slurm(environment), _open_mpi(environment)):
        if found is not None:
            return found if found.world > 1 else None
    return None


def _torchrun(environment: Mapping[str, str]) -> Rank | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    parts = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return _rank(environment, names, parts) if "TORCHELASTIC_RUN_ID" in environment else None


def _slurm(environment: Mapping[str, str]) -> Rank | None:
    """Reads the variables of a job step; a shell in an allocation has others of them, and is no step."""
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) >= _SPECIAL_STEPS or "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    nodes = max(1, int(environment.get("SLURM_STEP_NUM_NODES", "1")))
    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    known = {"tasks here": str(-(-tasks // nodes)), **environment}
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "tasks here")
    return _rank(known, names, ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))


def _open_mpi(environment: Mapping[str, str]) -> Rank | None:
    names = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    return _rank(environment, names, ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"))


def _rank(environment: Mapping[str, str], names: tuple[str, ...], parts: tuple[str, ...]) -> Rank | None:
    """Reads four numbers by these names; returns None if one of them is missing, or is no number."""
    texts = [environment.get(name, "") for name in names]
    if not all(text.isdecimal() for text in texts):
        return None
    number, count, local, local_count = map(int, texts)
    return Rank(number, count, local, local_count, "-".join(environment.get(part, "") for part in parts))
