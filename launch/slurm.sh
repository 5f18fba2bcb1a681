#!/bin/bash
# An experiment on several nodes under Slurm, one process per GPU.
#
#   sbatch launch/slurm.sh pixel_cnn_pp --preset=paper --workdir=/shared/run --data_dir=/shared/tfds
#
# Call it in the root of a clone, with an environment active that has gm_jax and
# jax[cuda12] and that all nodes see, as they must see the work directory and the data
# (gm-jax prepare cifar10 --data_dir=/shared/tfds). JAX finds the processes by Slurm's
# variables.
#SBATCH --job-name=gm_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# SIGTERM two minutes before the end: the run saves and ends with status 143. The job is
# requeued, below, and resumes.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
if [ $# -lt 1 ]; then
  echo 'usage: sbatch launch/slurm.sh EXPERIMENT FLAGS...' >&2
  exit 2
fi
experiment=$1
shift
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not inherit it
# A process that loses another one ends with status 1; then Slurm ends the step.
status=0
srun --kill-on-bad-exit=1 python -m "experiments.$experiment" "$@" || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
