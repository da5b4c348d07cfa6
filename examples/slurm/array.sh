#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A screening run in 4 shares that need not run at the same time: RUN=... IMAGES=... OUT=... sbatch array.sh
# The same line again goes on; a share that is finished ends at once. For other N change --array and N.
#SBATCH --job-name=scrd-fast-screen
#SBATCH --array=0-3
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
# A node that fails, or a job of higher priority, puts the share back into the queue; it goes on where it was.
#SBATCH --requeue
#SBATCH --open-mode=append

# All three lie where every node sees them. `exec`: Slurm's signals and the exit code are those of the command itself.
# N is not SLURM_ARRAY_TASK_COUNT, which is 1 where a single share is repeated by `--array=2`.
# --device says which (cpu, too), as one that a node without a working GPU picks itself would be that of the whole run.
N=4
exec scrd-fast screen "$RUN" "$IMAGES" --out "$OUT" --device cuda --shard "$SLURM_ARRAY_TASK_ID/$N"
