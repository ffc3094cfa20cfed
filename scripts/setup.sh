# Sourced by scripts/test, demo, bench and real: Debian packages that are missing, and .venv with psu-bin installed.
# Environment: PSU_PACKAGES, further Debian packages.
# shellcheck shell=bash

psu_packages="gcc g++ make libc6-dev clang libclang-rt-dev lld llvm binutils elfutils gdb musl-tools python3-venv patchelf spin valgrind ${PSU_PACKAGES:-}"
# Tests of AArch64 programs: compilers, emulators and what makes scripts/arm64-guest, where the machine itself is another one.
# Without them these tests are skipped.
psu_cross=""
[ "$(uname -m)" = aarch64 ] || psu_cross="gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user qemu-system-arm ipxe-qemu e2fsprogs \
    cpio kmod lld-15"
# The packages of a list that are not installed.
psu_missing() {
    for p in $1; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || printf ' %s' "$p"
    done
}
psu_install() {
    echo "installing:$1"
    local as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    # apt checks signatures as a user of its own, who must be able to write into /tmp.
    local apt="apt-get"
    [ "$(stat -c %a /tmp)" = 1777 ] || apt="apt-get -o APT::Sandbox::User=root"
    # shellcheck disable=SC2086
    $as_root $apt update -qq && DEBIAN_FRONTEND=noninteractive $as_root $apt install -y -qq --no-install-recommends $1 >/dev/null
}
# At once, if that goes: it is much faster.
if [ -n "$(psu_missing "$psu_packages $psu_cross")" ] && ! psu_install "$(psu_missing "$psu_packages $psu_cross")"; then
    [ -z "$(psu_missing "$psu_packages")" ] || psu_install "$(psu_missing "$psu_packages")"
    for p in $(psu_missing "$psu_cross"); do      # another release of Debian may lack one
        psu_install "$p" || true
    done
    [ -z "$(psu_missing "$psu_cross")" ] || echo "not installed, and what needs it is skipped:$(psu_missing "$psu_cross")"
fi

psu_python=""
for p in python3.13 python3.12 python3.11 python3; do
    if command -v "$p" >/dev/null && "$p" -c 'import sys, lzma, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        psu_python=$p
        break
    fi
done
[ -n "$psu_python" ] || { echo "psu-bin: needs Python 3.11 or later with venv and lzma" >&2; exit 1; }
[ -x .venv/bin/python ] || "$psu_python" -m venv .venv
# Again whenever something that is installed changed: Python code is used in place, the shim is compiled.
psu_stamp=$(cat setup.cfg setup.py shim/Makefile shim/*.[ch] shim/arch/*/* | cksum)
if [ "$(cat .venv/psu-stamp 2>/dev/null)" != "$psu_stamp" ]; then
    .venv/bin/pip install --quiet --disable-pip-version-check -e ".[test]"
    echo "$psu_stamp" > .venv/psu-stamp
fi
# psu-bin is started hundreds of times: let Python keep its compiled modules, as an installed package does.
unset PYTHONDONTWRITEBYTECODE
export PATH="$PWD/.venv/bin:$PATH"
