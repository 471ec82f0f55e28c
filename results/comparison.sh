#!/usr/bin/env bash
# Every method of the suite under the same protocol: the same encoder, as many trials on held-out
# images for each, the same FLOPs, several seeds; then three budgets, MAE's mask ratio, the report.
# What is done is not done again: the same command resumes it.
#
#   MINUTES=10 results/comparison.sh       the embedded data: about 20 hours on two CPU cores
#   PRESET=small results/comparison.sh     for a GPU: ViT-Ti/4 on CIFAR-10
#   COUNT=1 results/comparison.sh          print what would run and what it costs, and do nothing
#
# DATA (a name or a path), METHODS, PRESET, TRIALS (and TRIAL_LENGTH, a share), BUDGET and
# OTHER_BUDGETS (FLOPs), SEEDS (of the methods in MORE: MORE_SEEDS), TUNINGS (trials of fine-tuning)
# and RUNS (a folder) overrule, and FLAGS goes into every run. After MINUTES it stops with exit code
# 75. All but weights, features and CKA's arrays is copied to results/, from where
# `ssl-bench compare` and `show` read it. Methods of clips and captions have their own embedded
# data, and the same protocol without further budgets.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

PRESET=${PRESET:-quick} TRIALS=${TRIALS:-4} TRIAL_LENGTH=${TRIAL_LENGTH:-0.25} TUNINGS=${TUNINGS:-3}
SEEDS=${SEEDS:-0..2} MORE_SEEDS=${MORE_SEEDS:-0..4}
MORE=${MORE:-mae mocov3 supervised random-init}
IN_BUDGETS=${IN_BUDGETS:-mae mocov3 dino supervised}
MINUTES=${MINUTES:-1000000}
case $PRESET in
    quick) DATA=${DATA:-fashion-mnist} BUDGET=${BUDGET:-2e13} OTHER_BUDGETS=${OTHER_BUDGETS:-1.25e12,5e12,8e13}
        EPOCHS=4 ABLATED=(--finetune-epochs 1) ;;
    small) # for a GPU; fine-tuning takes 50 epochs instead of 100, and half of its time
        DATA=${DATA:-cifar10} BUDGET=${BUDGET:-1e16} OTHER_BUDGETS=${OTHER_BUDGETS:-2.5e15,4e16}
        EPOCHS=200 ABLATED=() FLAGS=${FLAGS:---finetune-epochs 50}
        ;;
    *)
        echo "PRESET is quick or small, not '$PRESET'" >&2
        exit 2
        ;;
esac
# Methods that learn from single images, whatever files there are, the untrained encoder among them.
METHODS=${METHODS:-$(python -c '
from ssl_bench.api import registry
print(*(name for name, plugin in registry.discover("method").items()
        if plugin.declared.columns <= {"image", "label"}))')}
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
    echo "not done yet: the same command resumes" >&2
    exit 75
}

seeds_of() { [[ " $MORE " == *" $1 "* ]] && echo "$MORE_SEEDS" || echo "$SEEDS"; }

sweep() { # method, seeds, evaluations, further flags; one after the other, in this very process
    local done
    done="$RUNS/.done/$(printf '%s ' "$@" "$DATA" "$PRESET" "${FLAGS[@]}" | cksum | tr ' ' -)"
    [[ -e $done ]] && return # planning it again takes longer than looking
    bench sweep --cluster debug --method "$1" --seed "$2" --evals "$3" --data "$DATA" \
        --preset "$PRESET" --runs-dir "$RUNS" "${@:4}" "${FLAGS[@]}" ${COUNT:+--dry-run}
    [[ -n ${COUNT:-} ]] || { mkdir -p "${done%/*}" && touch "$done"; }
}

compared() { # method, seeds, evaluations, budgets (trials have the first), further flags
    if [[ $1 == random-init ]]; then
        sweep "$1" "$2" "$3" "${@:5}"
    else
        sweep "$1" "$2" "$3" "${@:5}" --budget-flops "$4" \
            --search sobol --trials "$TRIALS" --trial-length "$TRIAL_LENGTH" --choose-by linear
    fi
}

share() { # folders that there may be, with the runs of other budgets
    local folder
    mkdir -p "$BUDGETS"
    for folder; do
        [[ ! -e $folder || -e $BUDGETS/${folder##*/} ]] && continue
        rm -rf "$BUDGETS/.copy" # of a copy that was interrupted
        cp -a "$folder" "$BUDGETS/.copy"
        mv "$BUDGETS/.copy" "$BUDGETS/${folder##*/}"
    done
}

for method in $METHODS; do
    compared "$method" "$(seeds_of "$method")" knn,linear "$BUDGET"
done
for method in $METHODS; do
    compared "$method" "$(seeds_of "$method")" finetune "$BUDGET" --finetune-trials "$TUNINGS"
done
for method in $METHODS; do
    compared "$method" "$(seeds_of "$method")" \
        low-shot,robustness,representation,cka,attention,embedding "$BUDGET"
done
# Budgets have a folder of their own, as a table of the first one has no rows of the others. Trials
# and runs under the first one belong to both.
BUDGETS=$RUNS-budgets
[[ -z ${COUNT:-} || -d $BUDGETS ]] || BUDGETS=$RUNS # nothing is copied only to be counted
for method in $IN_BUDGETS random-init; do
    [[ " $METHODS " == *" $method "* ]] || continue
    [[ -n ${COUNT:-} ]] || share "$RUNS/$method-$NAME"* "$RUNS/baselines"
    RUNS=$BUDGETS compared "$method" "$SEEDS" knn,linear "$BUDGET,$OTHER_BUDGETS"
done
if [[ " $METHODS " == *" mae "* && -z ${COUNT:-} ]]; then
    bench ablate mask-ratio --method mae --data "$DATA" --preset "$PRESET" --epochs $EPOCHS \
        --no-norm-pix-loss --seeds 0,1,2 --evals linear,finetune --runs-dir "$RUNS-mask-ratio" \
        "${ABLATED[@]}" "${FLAGS[@]}"
fi
# Clips and captions: presets as they are, beside the untrained encoder of the same seeds.
OTHERS=$(cat <<'END'
fashion-motions knn,linear,finetune videomae random-init
fashion-captions knn,linear,retrieval,zero-shot,masked-words albef random-init
fashion-captions masked-words,knn,linear bert
END
)
[[ $PRESET == quick ]] || OTHERS=
while read -ru 3 data evals methods; do
    for method in $methods; do
        DATA=$data RUNS=$RUNS-$data sweep "$method" "$SEEDS" "$evals"
    done
done 3<<< "$OTHERS"
[[ -z ${COUNT:-} ]] || exit 0

# Trials are on data of another name, and stay out of the tables.
bench compare "*-$NAME-seed*" --runs-dir "$RUNS"
bench report "*-$NAME-seed*" --runs-dir "$RUNS" -o "$RUNS/report"
keep() { # runs, where
    [[ -d $1 ]] || return 0
    rm -rf "$2"
    mkdir -p "$2"
    tar -C "$1" --exclude='*.safetensors' --exclude='checkpoint.pt' --exclude='.lock' \
        --exclude='features' --exclude='.index' --exclude='.done' \
        --exclude='cka-*/arrays.npz' --exclude='jobs' \
        --exclude='*-validation-seed*/figures' --exclude='*-validation-seed*/evals/*/predictions.npz' \
        --exclude='snapshots/*/predictions.npz' -cf - . | tar -C "$2" -xf -
}
keep "$RUNS" "results/$NAME"
if [[ -d $BUDGETS ]]; then
    bench report "*-$NAME-seed*" --runs-dir "$BUDGETS" -o "$BUDGETS/report"
    keep "$BUDGETS" "results/$NAME-budgets"
    # Their trials are those of the first budget, and only one kind of figure is new.
    rm -rf "results/$NAME-budgets"/*-validation-seed*
    find "results/$NAME-budgets/report" -type f ! -name 'budgets-*' -delete
fi
keep "$RUNS-mask-ratio" "results/$NAME-mask-ratio"
for data in $(cut -d' ' -f1 <<< "$OTHERS" | sort -u); do
    bench report --runs-dir "$RUNS-$data" -o "$RUNS-$data/report"
    keep "$RUNS-$data" "results/$data"
done
