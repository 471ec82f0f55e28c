#!/usr/bin/env bash
# MAE, MoCo v3, supervised training and no training at all under the same FLOPs, several seeds each:
# runs, then the report. What is done is not done again: the same command goes on where it stopped.
#
#   results/comparison.sh                              the embedded images: an hour on two CPU cores
#   PRESET=small MINUTES=10 results/comparison.sh      for a GPU, ten minutes at a time: ViT-Ti/4 on
#                                                      CIFAR-10, and MAE's mask ratio
#
# DATA (a name or a path), PRESET, BUDGET (FLOPs), SEEDS and RUNS (a folder) overrule, and FLAGS goes
# into every run. After MINUTES it stops with exit code 75. All but weights, features and CKA's arrays
# is copied to results/, from where `ssl-bench compare` and `show` read it.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

PRESET=${PRESET:-quick}
SEEDS=${SEEDS:-0 1 2}
MINUTES=${MINUTES:-1000000}
case $PRESET in
    quick) DATA=${DATA:-fashion-mnist} BUDGET=${BUDGET:-2e13} ;;
    small) # an evaluation cannot go on from its middle, so none may take longer than a piece
        DATA=${DATA:-cifar10} BUDGET=${BUDGET:-5.5e16}
        FLAGS=${FLAGS:---finetune-epochs 50 --partial-finetune-epochs 5}
        ;;
    *)
        echo "PRESET is quick or small, not '$PRESET'" >&2
        exit 2
        ;;
esac
read -ra FLAGS <<< "${FLAGS:-}"
NAME=$(basename "$DATA")
RUNS=${RUNS:-runs/comparison-$NAME}

bench() {
    local left=$((60 * MINUTES - SECONDS)) status=0
    if ((left > 0)); then
        timeout --foreground --signal=INT $left ssl-bench "$@" || status=$?
        ((status == 0)) && return
        ((status == 124)) || exit $status
    fi
    echo "not done yet: the same command goes on" >&2
    exit 75
}

cell() { # method, seed, evaluations, further flags
    local flags=(--method "$1" --seed "$2" --evals "$3" --data "$DATA" --preset "$PRESET" "${@:4}")
    [[ $1 == random-init ]] || flags+=(--budget-flops "$BUDGET")
    bench run "${flags[@]}" --runs-dir "$RUNS" "${FLAGS[@]}"
}

for seed in $SEEDS; do
    for method in mae mocov3 supervised random-init; do
        cell $method "$seed" knn,linear,finetune --eval-every 20% --eval-every-with knn
    done
done
for seed in $SEEDS; do
    for method in mae mocov3 supervised random-init; do
        cell $method "$seed" low-shot,robustness,representation,cka,attention,embedding
    done
done
for method in mae mocov3; do
    cell $method "${SEEDS%% *}" partial-finetune
done
if [[ $PRESET == small ]]; then
    bench ablate mask-ratio --method mae --data "$DATA" --preset small --epochs 200 \
        --evals knn,linear --runs-dir "$RUNS-mask-ratio" "${FLAGS[@]}"
fi

bench compare --runs-dir "$RUNS"
bench report --runs-dir "$RUNS" -o "$RUNS/report"
rm -rf "results/$NAME"
mkdir -p "results/$NAME"
tar -C "$RUNS" --exclude='*.safetensors' --exclude='checkpoint.pt' --exclude='.lock' \
    --exclude='features' --exclude='.index' --exclude='cka-*/arrays.npz' \
    --exclude='snapshots/*/predictions.npz' -cf - . | tar -C "results/$NAME" -xf -
