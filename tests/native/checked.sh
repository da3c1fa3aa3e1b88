#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the engine's Python tests with the extension built for a tool that watches memory or threads:
#   checked.sh asan|tsan|valgrind PYTHON [pytest's arguments, instead of all of tests/native]
# asan: gcc's ASan and UBSan; tsan: its TSan; valgrind: memcheck. The extension goes to build/checked/TOOL, where pytest
# finds it first. PYTHON is an interpreter with pytest, hypothesis and botocore. The last line is pytest's; the status is
# not 0 also where a tool complained in a process that pytest started (then its report is shown).
#
# Not looked for here: leaks (Python itself leaves much behind at its end; test_leaks.py counts malloc's bytes, and the C
# tests run under LeakSanitizer and valgrind's leak check).
set -u
tool=$1
python=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
built=$root/build/checked/$tool
reports=$built/reports
export PYTHONMALLOC=malloc
common=log_path=$reports/report:halt_on_error=1:exitcode=99
case $tool in
    asan)
        flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
        preload=$(gcc -print-file-name=libasan.so)
        export ASAN_OPTIONS=$common:detect_leaks=0 UBSAN_OPTIONS=$common:print_stacktrace=1
        ;;
    tsan)
        flags=-fsanitize=thread
        preload=$(gcc -print-file-name=libtsan.so)
        export TSAN_OPTIONS="$common:suppressions=$here/tsan.supp:die_after_fork=0"
        ;;
    valgrind)
        flags=
        preload=
        ;;
    *)
        echo "checked.sh: $tool is none of asan, tsan, valgrind" >&2
        exit 2
        ;;
esac

rm -rf "$built"
mkdir -p "$reports"
cd "$root" || exit 1
CFLAGS="-g -O1 -fno-omit-frame-pointer $flags" LDFLAGS=$flags "$python" setup.py -q build_ext \
    --build-lib "$built" --build-temp "$built/objects" >"$built/log" 2>&1 || {
    cat "$built/log"
    exit 1
}
cp tahoe_s3/*.py tahoe_s3/*.pyi "$built/tahoe_s3/"
[ $# = 0 ] && set -- tests/native
export PYTHONPATH=$built
# Without the current folder on the path, whose own tahoe_s3 would come first.
run='import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())'
set -- -c "$run" --import-mode=append --noconftest -p no:cacheprovider -p no:twisted -q "$@"
if [ "$tool" = valgrind ]; then
    valgrind -q --vgdb=no --error-exitcode=99 --suppressions="$here/valgrind.supp" --trace-children=no "$python" "$@"
else
    LD_PRELOAD=$preload "$python" "$@"
fi
status=$?
for report in "$reports"/*; do
    [ -f "$report" ] || continue
    echo "--- $report"
    cat "$report"
    [ "$status" != 0 ] || status=99
done
exit "$status"
