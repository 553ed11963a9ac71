#!/usr/bin/env bash
# train.sh, cut down to about a minute on two CPU cores: what demo.py runs. Needs DATA_DIR and
# SAVE_DIR in the environment; further arguments are passed on.
set -euo pipefail

TOTAL_UPDATES=${TOTAL_UPDATES:-200}

exec fairseq-ray-train --cpu "$DATA_DIR" \
    --ray-address local --ray-max-workers 2 --fix-batch-size 16 \
    --task masked_lm --criterion masked_lm \
    --arch roberta_base --encoder-layers 2 --encoder-embed-dim 128 \
    --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 \
    --sample-break-mode complete --tokens-per-sample 128 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --clip-norm 0.0 \
    --lr-scheduler polynomial_decay --lr 0.001 \
    --warmup-updates 20 --total-num-update "$TOTAL_UPDATES" \
    --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 \
    --batch-size 8 \
    --max-update "$TOTAL_UPDATES" --log-format simple --log-interval 1 \
    --save-interval-updates 50 --keep-interval-updates 2 \
    --save-dir "$SAVE_DIR" --distributed-backend gloo \
    "$@"
