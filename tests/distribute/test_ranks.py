from __future__ import annotations

import pytest

from embedx.distribute.ranks import rank_of

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_RANK": "1",
    "ROLE_RANK": "9",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}
ALLOCATION = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOBID": "1234",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_JOB_NAME": "interactive",
    "SLURM_NTASKS_PER_NODE": "4",
}
STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-1@1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, (9, 16, 1, 8, "none-0-node-1-29500")),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}, (9, 16, 1, 8, "none-1-node-1-29500")),
        (STEP, (5, 8, 1, 4, "1234-0-")),
        (STEP | TORCHRUN, (9, 16, 1, 8, "none-0-node-1-29500")),  # srun starts torchrun
        (STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, (1, 2, 0, 1, "1234-0-")),
        (OPEN_MPI, (2, 4, 0, 2, "prterun-host-1@1-")),
    ],
)
def test_a_process_of_a_launcher_has_its_place(
    environment: dict[str, str], expected: tuple[int, int, int, int, str]
) -> None:
    assert rank_of(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ALLOCATION,  # salloc: a shell on the machine that it was typed on
        ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},  # sbatch: the script itself
        STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # salloc's interactive step
        STEP | {"SLURM_STEP_ID": "4294967291"},  # the batch step
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
        {"RANK": "1", "WORLD_SIZE": "2"},  # a user's own variables
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        TORCHRUN | {"LOCAL_RANK": "one"},
        {"OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_a_process_that_is_alone_has_none(environment: dict[str, str]) -> None:
    assert rank_of(environment) is None
