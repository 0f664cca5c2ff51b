// Stands in for libnuma.so.1 where the system has none (a bare Debian): vLLM's CPU kernels link against it and silently
// do not load without it. numa_available() = -1 is libnuma's own word for "no NUMA here", upon which a caller must not
// call anything else; vLLM then leaves memory where the kernel puts it. Built by scripts/provide_libnuma.sh.
#include <cstdlib>

#define MUST_NOT_BE_CALLED(name) \
    void name() { std::abort(); }

extern "C" {
int numa_available() { return -1; }
MUST_NOT_BE_CALLED(numa_bitmask_free)
MUST_NOT_BE_CALLED(numa_get_mems_allowed)
MUST_NOT_BE_CALLED(numa_migrate_pages)
MUST_NOT_BE_CALLED(numa_parse_nodestring)
MUST_NOT_BE_CALLED(numa_set_interleave_mask)
MUST_NOT_BE_CALLED(numa_set_membind)
MUST_NOT_BE_CALLED(numa_set_strict)
}
