#!/bin/bash
# An experiment on all hosts of a TPU pod slice.
#
#   launch/tpu_pod.sh TPU_NAME ZONE pixel_cnn_pp --preset=paper --workdir=mnt/run \
#       --data_dir=mnt/tfds
#
# The repository must lie in ~/gm_jax on every host, with its requirements and jax[tpu]
# installed, and the work directory and the data on storage that all hosts see, such as a
# bucket mounted at ~/gm_jax/mnt with gcsfuse --rename-dir-limit=1000, or with a hierarchical
# namespace: a checkpoint is a directory that is renamed when it is whole. JAX finds the
# hosts by the metadata of the slice.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo 'usage: launch/tpu_pod.sh TPU_NAME ZONE EXPERIMENT FLAGS...' >&2
  exit 2
fi
name=$1 zone=$2 experiment=$3
shift 3
printf -v flags ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/gm_jax && python -m experiments.$experiment$flags"
