#!/bin/sh
# A part of a merge for each task of an array, then the join. The recipe, its models and the output lie on a shared disk.
#
#   job=$(sbatch --parsable --array=1-16 recipes/cluster/slurm.sh recipe.yml merged)
#   sbatch --dependency="afterok:$job" --wrap "weld join merged"
#
# To verify the checkpoint in 16 parts: sbatch --array=1-16 recipes/cluster/slurm.sh --verify merged
#
#SBATCH --job-name=weld
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --requeue
set -eu
part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
threads=${SLURM_CPUS_PER_TASK:-1}
case $1 in
    --verify) exec weld verify "$2" --part "$part" --full --threads "$threads" --quiet ;;
    *) exec weld merge "$1" "$2" --part "$part" --threads "$threads" --quiet ;;
esac
