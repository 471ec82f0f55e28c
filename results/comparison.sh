#!/usr/bin/env bash
# MAE, MoCo v3, supervised training and no training at all under the same FLOPs, several seeds each:
# runs, then the report. What is done is not done again: the same command goes on where it stopped.
#
#   results/comparison.sh                 the embedded images: about an hour on two CPU cores
#   PRESET=small results/comparison.sh    for a GPU: ViT-Ti/4 on CIFAR-10, and MAE's mask ratio
#
# DATA (a name or a path), PRESET, BUDGET (FLOPs), SEEDS and RUNS (a folder) overrule, and FLAGS goes
# into every run. All but weights and features is copied to results/.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

PRESET=${PRESET:-quick}
SEEDS=${SEEDS:-0 1 2}
read -ra FLAGS <<< "${FLAGS:-}"
declare -A every  # epochs between two evaluations on the way: a fifth of the training
case $PRESET in
    quick)
        DATA=${DATA:-fashion-mnist} USUAL=2e13
        every=([mae]=1.66 [mocov3]=0.224 [supervised]=0.614)
        ;;
    small)
        DATA=${DATA:-cifar10} USUAL=5.5e16
        every=([mae]=253 [mocov3]=40 [supervised]=107)
        ;;
    *)
        echo "PRESET is quick or small, not '$PRESET'" >&2
        exit 2
        ;;
esac
BUDGET=${BUDGET:-$USUAL}
NAME=$(basename "$DATA")
RUNS=${RUNS:-runs/comparison-$NAME}

cell() {  # method, seed, evaluations
    local flags=(--method "$1" --seed "$2" --evals "$3" --data "$DATA" --preset "$PRESET")
    if [[ $1 != random-init ]]; then
        local fifth
        fifth=$(awk "BEGIN { print ${every[$1]} * $BUDGET / $USUAL }")
        flags+=(--budget-flops "$BUDGET" --eval-every "$fifth" --eval-every-with knn)
    fi
    ssl-bench run "${flags[@]}" --runs-dir "$RUNS" "${FLAGS[@]}"
}

for seed in $SEEDS; do
    for method in mae mocov3 supervised random-init; do
        cell $method "$seed" knn,linear,finetune
    done
done
for seed in $SEEDS; do
    for method in mae mocov3 supervised random-init; do
        cell $method "$seed" low-shot,robustness,representation,cka,attention,embedding
    done
done
for method in mae mocov3 supervised random-init; do
    cell $method "${SEEDS%% *}" partial-finetune
done
if [[ $PRESET == small ]]; then
    ssl-bench ablate mask-ratio --method mae --data "$DATA" --preset small --epochs 200 \
        --evals knn,linear --runs-dir "$RUNS-mask-ratio" "${FLAGS[@]}"
fi

ssl-bench compare --runs-dir "$RUNS"
ssl-bench report --runs-dir "$RUNS" -o "$RUNS/report"
mkdir -p "results/$NAME"
tar -C "$RUNS" --exclude='*.safetensors' --exclude='checkpoint.pt' --exclude='.lock' \
    --exclude='features' --exclude='.index' --exclude='cka-*/arrays.npz' \
    --exclude='snapshots/*/predictions.npz' -cf - . | tar -C "results/$NAME" -xf -
