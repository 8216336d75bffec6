#!/bin/bash
#SBATCH --job-name=hpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=hpt-%j.log
# sbatch examples/slurm.sh [PRESET [FOLDER]]     from a folder that all machines share; send it again to go on
set -eu
source .venv/bin/activate
export HF_HOME="$PWD/cache/hf" HPT_CACHE="$PWD/cache/hpt" HF_HUB_OFFLINE=1   # fetch the models before
export RAY_AUTH_MODE=token
[ -f ~/.ray/auth_token ] || ray get-auth-token --generate > /dev/null
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    hpt run "${1:-paper}" --engine ray --quiet --retry-failed --out "${2:-runs/paper}"
