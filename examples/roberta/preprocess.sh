#!/usr/bin/env bash
# Makes RoBERTa's training data from WikiText-103 in $DATA_DIR. On the cluster: run it once, on
# the head. Needs a network; what is done already is kept.
set -euo pipefail

DATA_DIR=${DATA_DIR:-$HOME/efs/roberta/data-bin/wikitext-103}

python -c 'import datasets' 2>/dev/null || pip install -q datasets
mkdir -p "$(dirname "$DATA_DIR")"
exec python "$(dirname "$0")/preprocess.py" --wikitext-103 --dest-dir "$DATA_DIR"
