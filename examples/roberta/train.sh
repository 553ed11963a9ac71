#!/usr/bin/env bash
# Pre-trains RoBERTa base on whatever GPUs the Ray cluster has, now and later. On the cluster: run
# it on the head. Started again, it goes on from the newest checkpoint. Further arguments are
# passed on.
set -euo pipefail

DATA_DIR=${DATA_DIR:-$HOME/efs/roberta/data-bin/wikitext-103}
SAVE_DIR=${SAVE_DIR:-$HOME/efs/roberta/checkpoints}

TOTAL_UPDATES=${TOTAL_UPDATES:-125000}              # number of updates in all
WARMUP_UPDATES=${WARMUP_UPDATES:-10000}             # the learning rate rises over this many
PEAK_LR=${PEAK_LR:-0.0005}                          # and peaks here
TOKENS_PER_SAMPLE=${TOKENS_PER_SAMPLE:-512}         # longest sequence
BATCH_SIZE=${BATCH_SIZE:-8}                         # sequences on one GPU at a time
FIX_BATCH_SIZE=${FIX_BATCH_SIZE:-2048}              # sequences an update, however many GPUs
SAVE_INTERVAL_UPDATES=${SAVE_INTERVAL_UPDATES:-1000} # a checkpoint every so many updates
RAY_ADDRESS=${RAY_ADDRESS:-auto}                    # the cluster this machine belongs to

case $SAVE_DIR in *://*) ;; *) mkdir -p "$SAVE_DIR" ;; esac  # s3://... needs no folder

exec fairseq-ray-train --fp16 "$DATA_DIR" \
    --ray-address "$RAY_ADDRESS" --fix-batch-size "$FIX_BATCH_SIZE" \
    --task masked_lm --criterion masked_lm \
    --arch roberta_base --sample-break-mode complete --tokens-per-sample "$TOKENS_PER_SAMPLE" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --clip-norm 0.0 \
    --lr-scheduler polynomial_decay --lr "$PEAK_LR" \
    --warmup-updates "$WARMUP_UPDATES" --total-num-update "$TOTAL_UPDATES" \
    --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
    --batch-size "$BATCH_SIZE" \
    --max-update "$TOTAL_UPDATES" --log-format simple --log-interval 1 \
    --save-interval-updates "$SAVE_INTERVAL_UPDATES" \
    --save-dir "$SAVE_DIR" \
    "$@"
