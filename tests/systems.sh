#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# make's targets on fresh copies of other Debians, which bring other versions of gcc, Python, libcurl, OpenSSL, libxml2:
#   tests/systems.sh [SUITE=TARGETS ...]     ("trixie=test" "sid=packages ctest sanitize")
# debootstrap makes each below FOLDER (build/systems), with a clone of the last commit in /root/tahoe-s3, where it stays
# until the next run or `make clean`. Root only. Ends with a line for each; its status is 0 if all passed.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "tests/systems.sh: as root, with debootstrap (apt-get install debootstrap)" >&2
    exit 1
fi
# What is mounted below is seen by nobody else, and gone with this process however it ends: not even `make clean` at the
# wrong moment can reach this machine's devices through it.
if [ -z "${TS3_OWN_MOUNTS-}" ]; then
    exec env TS3_OWN_MOUNTS=1 unshare --mount --propagation private tests/systems.sh "$@"
fi
folder=${FOLDER:-$PWD/build/systems}
mkdir -p "$folder" || exit 1
[ $# -gt 0 ] || set -- "trixie=test" "sid=packages ctest sanitize"

# What a clone in there needs of this machine: devices, names, authorities, and how apt and pip reach their packages.
furnish() {
    local root=$1
    mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && mount -t tmpfs tmpfs "$root/dev/shm" || return 1
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/90machine"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
    cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
}

try() {
    local suite=$1 targets=$2 root=$folder/$1
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase --include=ca-certificates,git,make "$suite" "$root" || return 1
    furnish "$root" && git clone -q . "$root/root/tahoe-s3" || return 1
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        chroot "$root" bash -c "cd /root/tahoe-s3 && make $targets"
}

said=()
failed=0
for one in "$@"; do
    suite=${one%%=*} targets=${one#*=}
    echo "--- $suite: make $targets"
    if try "$suite" "$targets" 2>&1 </dev/null | tee "$folder/$suite.log" | grep -v '^I: '; then
        said+=("$suite: passed")
    else
        said+=("$suite: failed, see $folder/$suite.log")
        failed=1
    fi
done
printf '%s\n' "${said[@]}"
exit $failed
