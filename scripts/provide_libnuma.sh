#!/usr/bin/env bash
# Lets vLLM's CPU kernels load on a machine without libnuma1. Usage: provide_libnuma.sh VENV
set -euo pipefail
venv=$1
library=$venv/lib/libnuma.so.1
hook=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libnuma_absent.pth
rm -f "$library" "$hook"
if "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    exit 0
fi

echo "      no libnuma here: building a stand-in (on a machine of several sockets: apt-get install libnuma1, then" \
    "rm $venv/.packages)"
versions=$(mktemp)
trap 'rm -f "$versions"' EXIT
# The versions under which libnuma exports what vLLM asks for.
cat >"$versions" <<'END'
libnuma_1.1 { global: numa_available; numa_migrate_pages; numa_set_strict; local: *; };
libnuma_1.2 { global: numa_bitmask_free; numa_get_mems_allowed; numa_parse_nodestring; numa_set_interleave_mask;
              numa_set_membind; } libnuma_1.1;
END
g++ -shared -fPIC -O1 -Wl,-soname,libnuma.so.1 -Wl,--version-script="$versions" \
    -o "$library" "$(dirname "$0")/libnuma_absent.cpp"
# Loaded at the start of every Python of this .venv, by name, so that a later request for libnuma.so.1 finds it.
echo 'import ctypes, os, sys; ctypes.CDLL(os.path.join(sys.prefix, "lib", "libnuma.so.1"), ctypes.RTLD_GLOBAL)' >"$hook"
