#!/bin/bash
# One training run on several nodes, which goes on by itself after preemption and the time limit.
#
#     sbatch --nodes 2 docs/slurm_train.sh scripts/train_vae.py --config configs/vae/1_video_256.yaml
#
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log

# --signal: three minutes before the end every process gets SIGTERM, finishes its step, saves and
# exits with 143 (128 + 15). Preemption sends SIGTERM too. The shell itself must outlive it.
trap '' TERM

source .venv/bin/activate
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=1

# one process per GPU; srun gives each its rank
srun --kill-on-bad-exit=0 bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec python "$@"' train "$@"
code=$?

if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"  # the same command resumes
fi
exit "$code"
