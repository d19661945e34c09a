#!/usr/bin/env bash
# The kernel tests on 64-bit Arm, on any x86 Debian: cross-compiles the native core and runs the
# tests on it under qemu, with Debian's own Arm Python in a directory of its own. Nothing is
# installed into this system, and no root is needed once these are there:
#
#   apt-get install g++-aarch64-linux-gnu qemu-user
#
# usage: tools/neon_check.sh [pytest arguments]
#
# Without a path among the arguments: tests/native, and of tests/executors what needs no torch and no
# compiler.
#
#   PYTHON      interpreter with pip, nanobind and cmake; of Debian's own version (default: python3)
#   NEON_WORK   where everything is put (default: build/neon); kept, so that a second run is quick
#
# Exit status: pytest's, or 2 with one line on stderr where something is missing.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=${NEON_WORK:-$root/build/neon}
python=${PYTHON:-python3}

fail() {
  echo "neon-check: $*" >&2
  exit 2
}

run_logged() { # name, command...: quiet unless it fails
  local name=$1 log="$work/$1.log"
  shift
  "$@" >"$log" 2>&1 || fail "$name failed; see $log: $(grep -iE '^E:|error' "$log" | head -n 1)"
}

require() {
  local missing=() tool
  for tool in apt-get dpkg-deb aarch64-linux-gnu-g++ qemu-aarch64 cmake ninja; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  "$python" -c 'import nanobind, pip' 2>/dev/null || missing+=("nanobind and pip for $python")
  [ ${#missing[@]} -eq 0 ] || fail "missing $(printf '%s, ' "${missing[@]}" | sed 's/, $//')" \
    "(Debian: apt-get install g++-aarch64-linux-gnu qemu-user; pip install cmake ninja nanobind)"
}

# apt for arm64 with lists and packages under $work: this system's own apt state is not touched.
configure_apt() {
  mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
  : >"$work/apt/status"
  cat >"$work/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "0";
APT::Sandbox::User "";
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
Debug::NoLocking "1";
END
}

arm_apt() { APT_CONFIG="$work/apt/apt.conf" "$@"; }

# Debian's Python for arm64 with the libraries that it needs, unpacked.
make_sysroot() {
  [ -e "$work/sysroot/.complete" ] && return
  echo "neon-check: fetching Debian's arm64 Python"
  rm -rf "$work/sysroot"
  configure_apt
  run_logged update arm_apt apt-get update
  local name
  name=$(arm_apt apt-cache depends python3-minimal 2>/dev/null | grep -oE 'python3\.[0-9]+' | head -n 1) ||
    fail "apt found no arm64 packages (no network, or a mirror without them); see $work/update.log"
  run_logged download arm_apt apt-get install --yes --download-only "$name" "lib$name-dev" libstdc++6
  local package
  for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/sysroot"; done
  echo "$name" >"$work/sysroot/.complete"
}

install_wheels() { # what the tests import, for arm64
  [ "$work/site/.complete" -nt "$root/constraints.txt" ] && return
  echo "neon-check: fetching arm64 wheels"
  rm -rf "$work/site"
  run_logged wheels "$python" -m pip install --disable-pip-version-check --target "$work/site" \
    --constraint "$root/constraints.txt" --only-binary=:all: --implementation cp \
    --python-version "${version#python}" --platform manylinux2014_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    numpy safetensors pytest pytest-asyncio hypothesis
  touch "$work/site/.complete"
}

build() {
  echo "neon-check: building"
  run_logged configure cmake -S "$root" -B "$work/native" -G Ninja \
    -DCMAKE_TOOLCHAIN_FILE="$root/tools/aarch64_linux_gnu.cmake" \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -DPython_INCLUDE_DIR="$work/sysroot/usr/include/$version" \
    -DCMAKE_CXX_FLAGS="-idirafter $work/sysroot/usr/include"
  run_logged build cmake --build "$work/native"
}

# The Python sources by link, so that no module built for this machine is beside them.
link_package() {
  rm -rf "$work/package"
  mkdir -p "$work/package"
  cp -as "$root/src/trimtab" "$work/package/trimtab"
  rm -f "$work"/package/trimtab/_native*.so
  ln -s "$work"/native/_native*.so "$work/package/trimtab/_native.so"
}

# $work/bin/python: the Arm Python under qemu; tests that start another Python get it, too.
wrap_python() {
  mkdir -p "$work/bin"
  cat >"$work/bin/python" <<END
#!/bin/sh
export PYTHONPATH="$work/package:$work/site" PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64 -L "$work/sysroot" "$work/sysroot/usr/bin/$version" "\$@"
END
  chmod +x "$work/bin/python"
  echo "import sys; sys.executable = '$work/bin/python'" >"$work/package/sitecustomize.py"
}

expect_paths() { # processor, paths, features that neon lacks
  local found
  found=$(QEMU_CPU=$1 "$work/bin/python" -c "from trimtab import _native
print(' '.join(_native.available_isas()), '/', ' '.join(_native.missing_features('neon')))")
  [ "$found" = "$2 / $3" ] || fail "on $1 the kernel paths / missing features are '$found'"
  echo "neon-check: $1 runs $2${3:+, lacks $3}"
}

require
mkdir -p "$work"
make_sysroot
version=$(cat "$work/sysroot/.complete")
"$python" -c "import sys; sys.exit('python%d.%d' % sys.version_info[:2] != '$version')" ||
  fail "$python must be $version, as this Debian's own; try PYTHON=$version"
install_wheels
build
link_package
wrap_python

# Neoverse N1 is Armv8.2 with dot products and nothing newer, so no other instruction can slip in.
expect_paths cortex-a53 "portable" "ATOMICS ASIMDDP"
expect_paths neoverse-n1 "neon portable" ""

cd "$root"
QEMU_CPU=neoverse-n1 "$work/bin/python" -m pytest -o pythonpath="$work/package" \
  -o testpaths="tests/native tests/executors" --ignore=tests/executors/test_cpu_oracle.py \
  --ignore=tests/executors/test_allocations.py --ignore=tests/executors/test_torch_model.py \
  --ignore=tests/executors/test_gguf_of_llama_cpp.py "$@"
