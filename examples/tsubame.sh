#!/bin/bash
#$ -cwd
#$ -N hpt
#$ -l node_f=2
#$ -l h_rt=24:00:00
#$ -j y
# qsub -g GROUP examples/tsubame.sh [PRESET [FOLDER]]     on a group disk that all machines share; send it again to go on
# Grid Engine as on TSUBAME 4.0: node_f is a whole machine with four H100. Elsewhere put the queue's own request in its place.
set -eu
module load cuda openmpi
source .venv/bin/activate
export HF_HOME="$PWD/cache/hf" HPT_CACHE="$PWD/cache/hpt" HF_HUB_OFFLINE=1   # fetch the models before
export RAY_AUTH_MODE=token
[ -f ~/.ray/auth_token ] || ray get-auth-token --generate > /dev/null
head=$(awk 'NR == 1 {print $1}' "$PE_HOSTFILE")
nodes=$(awk '{print $1}' "$PE_HOSTFILE" | sort -u | wc -l)
mpirun -npernode 1 -n "$nodes" -x PATH -x HF_HOME -x HPT_CACHE -x HF_HUB_OFFLINE -x RAY_AUTH_MODE \
    ray symmetric-run --address "$head:6379" --min-nodes "$nodes" -- \
    hpt run "${1:-paper}" --engine ray --quiet --retry-failed --out "${2:-runs/paper}"
