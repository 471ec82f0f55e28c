#!/usr/bin/env bash
# MAE, MoCo v3, supervised training and no training at all, three seeds each, all under the same
# FLOPs: runs, then the report. What is done is not done again, so that the same command goes on
# where it was interrupted.
#
#   results/comparison.sh                                the embedded images, an hour on two CPU cores
#   DATA=cifar10 PRESET=small results/comparison.sh      a GPU's: ViT-Ti/4 on CIFAR-10, and the mask ratio
#
# DATA, PRESET, BUDGET (FLOPs), SEEDS, EVALS and OUT (a folder under results/) overrule; FLAGS goes
# into every run.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

PRESET=${PRESET:-quick}
SEEDS=${SEEDS:-0 1 2}
EVALS=${EVALS:-knn,linear,finetune,low-shot,robustness,partial-finetune,representation,cka,attention,embedding}
case $PRESET in
    quick) DATA=${DATA:-fashion-mnist} BUDGET=${BUDGET:-3.6e13} ABLATE="" ;;
    small) DATA=${DATA:-cifar10} BUDGET=${BUDGET:-5.5e16} ABLATE=${ABLATE:---epochs 200} ;;
    *) echo "PRESET is quick or small, not '$PRESET'" >&2; exit 2 ;;
esac
NAME=$(basename "$DATA")
OUT=${OUT:-results/$NAME}

# Every eighth of the training or so: a method that costs more for an image has fewer epochs.
declare -A epochs=([quick-mae]=2 [quick-mocov3]=0.25 [quick-supervised]=0.7
                   [small-mae]=150 [small-mocov3]=25 [small-supervised]=65)
share=$(awk -v budget="$BUDGET" -v usual="$([[ $PRESET == quick ]] && echo 3.6e13 || echo 5.5e16)" \
    'BEGIN { print budget / usual }')

cell() {  # method, seed, further flags
    local method=$1 seed=$2
    shift 2
    # shellcheck disable=SC2086
    ssl-bench run --method "$method" --seed "$seed" --data "$DATA" --preset "$PRESET" \
        --evals "$EVALS" --runs-dir "$OUT" "$@" ${FLAGS:-}
}

for seed in $SEEDS; do
    for method in mae mocov3 supervised; do
        every=$(awk -v epochs="${epochs[$PRESET-$method]}" -v share="$share" \
            'BEGIN { print epochs * share }')
        cell $method "$seed" --budget-flops "$BUDGET" --eval-every "$every"
    done
    cell random-init "$seed"
done
if [[ -n $ABLATE ]]; then
    # shellcheck disable=SC2086
    ssl-bench ablate mask-ratio --method mae --data "$DATA" --preset "$PRESET" $ABLATE \
        --evals knn,linear --runs-dir "$OUT-mask-ratio" ${FLAGS:-}
fi
ssl-bench compare --runs-dir "$OUT"
ssl-bench report --runs-dir "$OUT" -o "$OUT/report"
