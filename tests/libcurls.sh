#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The C tests on other versions of libcurl and OpenSSL: those that wheels of pycurl bring (libcurl 8.12, 8.16, 8.19, 8.21,
# 8.22 and 8.23). Compiled with this machine's headers, as a package is whose libraries were upgraded later.
#   tests/libcurls.sh [VERSION OF PYCURL ...]
# PYTHON (python3) must have pip, and a version for which there are wheels. Ends with a line for each; 1 is its status if
# one failed. What was fetched and built stays in build/libcurls.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- 7.45.6 7.45.7 7.46.0 7.47.0 7.48.0 7.49.0

try() {
    local folder=$PWD/build/libcurls/$1 name file
    local libraries=$folder/pycurl.libs packages=$folder/pkgconfig
    mkdir -p "$packages"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --upgrade \
        --target "$folder" "pycurl==$1" || return 1
    PYTHONPATH=$folder "$python" -c 'import pycurl; print(pycurl.version)'
    for name in libcurl libssl libcrypto; do
        file=$(cd "$libraries" && echo "$name"-*.so.*)
        printf '%s\n' "Name: $name" "Description: of pycurl's wheel" "Version: 1" \
            "Libs: -L$libraries -l:$file -Wl,-rpath,$libraries -Wl,-rpath-link,$libraries" >"$packages/$name.pc"
    done
    PKG_CONFIG_PATH=$packages make --no-print-directory -C tests/c OUT="$folder/c" CLANG= check
}

said=()
failed=0
for one in "$@"; do
    echo "--- pycurl $one"
    log=build/libcurls/$one.log
    mkdir -p build/libcurls
    try "$one" 2>&1 | tee "$log" || failed=1
    said+=("$(grep -o 'libcurl/[^ ]* OpenSSL/[^ ]*' "$log" | head -n 1): $(tail -n 1 "$log")")
done
printf '%s\n' "${said[@]}"
exit $failed
