// What the portable build tells about this machine.
#include <cstring>

#define HAS(name) (!strcmp(feature, name) && __builtin_cpu_supports(name))

extern "C" int cpu_has([[maybe_unused]] const char* feature) {
#if defined(__x86_64__)
    return HAS("avx512f") || HAS("avx512dq") || HAS("avx512bw") || HAS("avx512vl") || HAS("avx2") || HAS("fma");
#else
    return 0;
#endif
}
