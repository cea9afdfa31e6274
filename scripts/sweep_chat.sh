#!/usr/bin/env bash
# Rewards of replies over data sets, seeds and any options: every combination is a run.
#
#     bash scripts/sweep_chat.sh train_file=prefs.jsonl --seeds 0-2 granularity=token,segment,sequence
#     bash scripts/sweep_chat.sh --seeds 0,1,2 --config=configs/chat_builtin.yaml agg_func=avg,sum
#     bash scripts/sweep_chat.sh --seeds 0-4 --config=configs/chat_builtin.yaml stage=all granularity=token,segment,sequence
#     bash scripts/sweep_chat.sh --launcher slurm --datasets trl-lib/ultrafeedback_binarized hydra.launcher.partition=gpu
#
# Runs that are complete are skipped, those that were cut off go on, so that the same command can be typed again. A run
# that fails stops no other: it is named at the end, and the exit code is then 1. What is typed wrong is one line and
# exit code 2, before anything starts.
#
# --datasets A,B      data sets of the hub, each with its configuration where it has one, as NAME:CONFIG;
#                     otherwise the one of the configuration, or train_file=...
# --seeds LIST        0,1,2 or 0-4; otherwise 0,1,2 (or seed=0,1,2)
# key=value1,value2   any option of chat_task/run_chat.py (its --help explains all), with or without -- before it; every
#                     combination is run. A value that holds a comma or other marks is quoted: prompt_template="'{prompt}, '"
# --config FILE       YAML file with defaults, such as configs/chat_builtin.yaml
# --output DIR        the sweep's folder (runs in it are named by the options that have several values), otherwise outputs/sweep/chat below the current folder; a run lies in
#                     DIR/prefs/agg_func=max/seed-0, its log in seed-0.log beside it
# --launcher WORD     serial: one after another (the default); local: several at a time, by joblib; slurm: jobs of a
#                     cluster, by submitit; ray: by Ray, on this machine or the cluster of RAY_ADDRESS
# --jobs N            runs at a time with --launcher local, otherwise 2
# hydra.launcher.K=V  an option of the launcher itself, such as hydra.launcher.timeout_min=600 for slurm and
#                     +hydra.launcher.ray.remote.num_gpus=1 for ray
# --dry_run           show what would be run, and run nothing
#
# Afterwards: python scripts/collect_results.py DIR, and python scripts/draw_policy_curves.py DIR --output curves.png
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start_sweep.sh" chat "$@"
