#!/usr/bin/env bash
# Few-shot prompts over data sets, seeds and any options: every combination is a run.
#
#     bash scripts/sweep_fsc.sh --datasets sst-2,agnews --seeds 0-4 agg_func=avg,min,max
#     bash scripts/sweep_fsc.sh --seeds 0,1,2 --config-name=builtin guidance=token,sequence
#     bash scripts/sweep_fsc.sh --launcher local --jobs 4 --seeds 0-4 learning_rate=5e-5,1e-4
#     bash scripts/sweep_fsc.sh --launcher slurm --seeds 0-4 hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=1
#
# Runs that are complete are skipped, those that were cut off go on, so that the same command can be typed again. A run
# that fails stops no other: it is named at the end, and the exit code is then 1. What is typed wrong is one line and
# exit code 2, before anything starts.
#
# --datasets A,B      files of configs/dataset (or dataset=A,B); otherwise the one of the configuration
# --seeds LIST        0,1,2 or 0-4: dataset_seed and random_seed together, as published; otherwise 0,1,2. To cross them,
#                     give dataset_seed=0,1 random_seed=0,1,2 in its place
# key=value1,value2   any option of prompt_task/run_fsc.py (its --help explains all); every combination is run. A value
#                     that holds a comma or other marks is quoted: source_str="'a, b'"
# --config-name NAME  a file of configs/ to start from; --config-dir DIR: a folder with your own
# --output DIR        the sweep's folder (runs in it are named by the options that have several values), otherwise outputs/sweep/fsc below the current folder; a run lies in
#                     DIR/sst-2/agg_func=max/seed-0, its log in seed-0.log beside it
# --launcher WORD     serial: one after another (the default); local: several at a time, by joblib; slurm: jobs of a
#                     cluster, by submitit; ray: by Ray, on this machine or the cluster of RAY_ADDRESS
# --jobs N            runs at a time with --launcher local, otherwise 2
# hydra.launcher.K=V  an option of the launcher itself, such as hydra.launcher.timeout_min=600 for slurm and
#                     +hydra.launcher.ray.remote.num_gpus=1 for ray
# --dry_run           show what would be run, and run nothing
#
# Afterwards: python scripts/collect_results.py DIR
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start_sweep.sh" fsc "$@"
