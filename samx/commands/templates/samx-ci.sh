#!/usr/bin/env bash
# Gates an export: exported, compared with PyTorch, measured. Written by 'samx init-ci'; it is yours to change.
#
#   bash samx-ci.sh            every step, as a machine of yours runs it too
#   bash samx-ci.sh STEP       one step: install, export, compare, measure, comment or keep
#
# What it leaves lies in $OUT: artifact/, parity.xml (JUnit), parity.md, bench.json, bench.md, comment.md.
# Exit codes are those of samx: 3 the export computes something else, 4 it became slower for sure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

CHECKPOINT=${CHECKPOINT-@checkpoint}  # empty: the demo model
TARGET=${TARGET:-@target}
PRECISION=${PRECISION:-@precision}
WHEEL=${WHEEL:-@wheel}                # what 'make wheel' builds; of several, the newest
EXTRAS=${EXTRAS:-@extras}
EXPORT_OPTIONS=${EXPORT_OPTIONS:-}    # more options of 'samx export'
MEASURED=${MEASURED:-@measured}       # no: this target is measured on its own device
PYTHON=${PYTHON:-python3}
PIP_OPTIONS=${PIP_OPTIONS:-}          # more options of 'pip install', such as where its packages are
OUT=${OUT:-samx-ci}
BASELINE=${BASELINE:-samx-ci-baseline/bench.json}  # an earlier bench.json of the same machine, where there is one
SAMX=${SAMX:-$OUT/venv/bin/samx}

fail() {
    echo "error: $*" >&2
    exit 2
}

install() {
    local wheel
    wheel=$(compgen -G "$WHEEL" | sort -V | tail -n 1) || fail "no wheel of samx: found nothing at '$WHEEL'. Build one" \
        "with 'make wheel' in samx's checkout, put it there, or set WHEEL."
    "$PYTHON" -m venv "$OUT/venv"
    "$OUT/venv/bin/python" -m pip install --quiet $PIP_OPTIONS "$wheel[$EXTRAS]"
}

# What an earlier run found is not this one's: each step takes its own reports away before it begins.
export_artifact() {
    rm -rf "$OUT"/artifact "$OUT"/parity.* "$OUT"/bench.* "$OUT"/comment.md
    "$SAMX" export ${CHECKPOINT:+"$CHECKPOINT"} --target "$TARGET" "--$PRECISION" $EXPORT_OPTIONS --output "$OUT/artifact" --force
}

# What was exported is judged on this machine, in a process of its own, with prompts that are drawn anew.
compare() {
    rm -f "$OUT"/parity.*
    "$SAMX" validate "$OUT/artifact" --junit "$OUT/parity.xml" --markdown "$OUT/parity.md" --report "$OUT/parity.json"
}

measure() {
    rm -f "$OUT"/bench.*
    if [ "$MEASURED" = no ]; then
        echo "NOT MEASURED: times of target $TARGET are those of its own device ('samx bundle', 'samx bench')." | tee "$OUT/bench.md"
        return
    fi
    "$SAMX" bench "$OUT/artifact" --quick --output "$OUT/bench.json" --force
    if [ -f "$BASELINE" ]; then
        "$SAMX" report "$OUT/bench.json" --baseline "$BASELINE" --markdown "$OUT/bench.md" --force
    else
        "$SAMX" report "$OUT/bench.json" --markdown "$OUT/bench.md" --force
    fi
}

# One text for a pull request, of what there is: a step that failed has left what it found.
comment() {
    local part
    {
        echo "## samx: ${CHECKPOINT:-demo model} for $TARGET, $PRECISION"
        for part in parity bench; do
            echo
            if [ -f "$OUT/$part.md" ]; then cat "$OUT/$part.md"; else echo "NOT RUN: $part."; fi
        done
    } >"$OUT/comment.md"
    cat "$OUT/comment.md"
}

# What was measured is what the next run is compared with.
keep() {
    mkdir -p "$(dirname "$BASELINE")"
    if [ -f "$OUT/bench.json" ]; then cp "$OUT/bench.json" "$BASELINE"; fi
}

[ -d "$OUT" ] || { mkdir -p "$OUT" && echo '*' >"$OUT/.gitignore"; }  # nobody commits gigabytes of Python by mistake
case ${1-all} in
    install | compare | measure | comment | keep) "$1" ;;
    export) export_artifact ;;
    all) install; export_artifact; compare; measure; comment ;;
    *) fail "unknown step: found '$1', expected install, export, compare, measure, comment or keep" ;;
esac
