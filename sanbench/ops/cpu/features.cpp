// What the portable build tells about this machine.
#include <cstring>

extern "C" int cpu_has([[maybe_unused]] const char* feature) {
#if defined(__x86_64__)
#define ASK(name) \
    if (!strcmp(feature, name)) return __builtin_cpu_supports(name) != 0
    ASK("avx512f");
    ASK("avx512dq");
    ASK("avx512bw");
    ASK("avx512vl");
    ASK("avx2");
    ASK("fma");
#endif
    return 0;
}
