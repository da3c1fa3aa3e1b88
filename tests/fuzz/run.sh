#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the libFuzzer binaries of the targets given as arguments for $SECONDS_EACH each, from $CORPUS and what was found
# before, and ends with one line of sums. The Makefile here says what goes where.
set -u
passed=0
failed=0
for target in "$@"; do
    found=$OUT/found/$target
    broken=$OUT/broken
    log=$OUT/$target.log
    mkdir -p "$found" "$broken"
    words=
    case $target in
        list | error | documents) words=-dict=xml.dict ;;
    esac
    # $words is one option or none.
    # shellcheck disable=SC2086
    if "$OUT/fuzz_$target" "-max_total_time=$SECONDS_EACH" "-max_len=$MAX_BYTES" -timeout=10 -print_final_stats=1 \
        "-artifact_prefix=$broken/$target-" $words "$found" "$CORPUS/$target" >"$log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 60 "$log"
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "$target: ${runs:-no} runs, ${covered:-no} places covered"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
