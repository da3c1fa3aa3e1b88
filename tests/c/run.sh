#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the test binaries given as arguments (under $RUN_UNDER, if set), shows their failures, and ends with one line
# of sums. $CHOSEN, if set, is part of the names of those tests that are run. The status is 0 only when every binary
# ran to its end without a failure.
set -u
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0
broken=0
for binary in "$@"; do
    # RUN_UNDER is a command with its options, so it is split at spaces on purpose; CHOSEN is a word or nothing.
    # shellcheck disable=SC2086
    ${RUN_UNDER:-} "$binary" ${CHOSEN:-} >"$log" 2>&1 || broken=1
    sums=$(sed -n 's/^\([0-9][0-9]*\) passed, \([0-9][0-9]*\) failed$/\1 \2/p' "$log" | tail -n 1)
    if [ -z "$sums" ]; then
        echo "$(basename "$binary") did not reach its end"
        sums="0 1"
    fi
    grep -v ' passed, ' "$log"
    echo "$(basename "$binary"): ${sums% *} passed, ${sums#* } failed"
    passed=$((passed + ${sums% *}))
    failed=$((failed + ${sums#* }))
done
if [ "$broken" = 1 ] && [ "$failed" = 0 ]; then
    failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
