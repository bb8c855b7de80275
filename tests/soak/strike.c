// A library to preload: the STRIKE_AT-th open for writing, write, rename or unlink of a file under STRIKE_UNDER, in the process
// that STRIKE_PID names or (without it) any, ends the process with SIGKILL, or fails with the error number STRIKE_ERROR from
// then on. STRIKE_LOG counts: the file gets a byte for each such call.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls = 0;

static int under(const char* path) {
    const char* root = getenv("STRIKE_UNDER");
    char here[PATH_MAX], whole[2 * PATH_MAX];
    if (!root || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    return strncmp(path, root, strlen(root)) == 0;
}

// Whether the call is to fail; it does not return where the process is to die.
static int strike(void) {
    const char *at = getenv("STRIKE_AT"), *log = getenv("STRIKE_LOG"), *error = getenv("STRIKE_ERROR");
    long number = __sync_add_and_fetch(&calls, 1);
    if (log) {
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (fd >= 0) {
            syscall(SYS_write, fd, "x", 1);
            syscall(SYS_close, fd);
        }
    }
    if (!at || number < atol(at)) return 0;
    if (error) {
        errno = atoi(error);
        return 1;
    }
    if (number == atol(at)) kill(getpid(), SIGKILL);
    return 0;
}

static int under_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return under(path);
}

#define REAL(name) ((__typeof__(name)*)dlsym(RTLD_NEXT, #name))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))

int open(const char* path, int flags, ...) {
    MODE(flags)
    if (WRITES(flags) && under(path) && strike()) return -1;
    return REAL(open)(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
    MODE(flags)
    if (WRITES(flags) && under(path) && strike()) return -1;
    return REAL(open64)(path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
    MODE(flags)
    if (WRITES(flags) && under(path) && strike()) return -1;
    return REAL(openat)(folder, path, flags, mode);
}
FILE* fopen(const char* path, const char* mode) {
    if (mode[0] != 'r' && under(path) && strike()) return NULL;
    return REAL(fopen)(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
    if (mode[0] != 'r' && under(path) && strike()) return NULL;
    return REAL(fopen64)(path, mode);
}
ssize_t write(int fd, const void* data, size_t size) {
    if (fd > 2 && under_fd(fd) && strike()) return -1;
    return REAL(write)(fd, data, size);
}
ssize_t pwrite64(int fd, const void* data, size_t size, off64_t at) {
    if (under_fd(fd) && strike()) return -1;
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec* parts, int count) {
    if (fd > 2 && under_fd(fd) && strike()) return -1;
    return REAL(writev)(fd, parts, count);
}
int rename(const char* from, const char* to) {
    if (under(to) && strike()) return -1;
    return REAL(rename)(from, to);
}
int renameat(int a, const char* from, int b, const char* to) {
    if (under(to) && strike()) return -1;
    return REAL(renameat)(a, from, b, to);
}
int unlink(const char* path) {
    if (under(path) && strike()) return -1;
    return REAL(unlink)(path);
}
int unlinkat(int folder, const char* path, int flags) {
    if (under(path) && strike()) return -1;
    return REAL(unlinkat)(folder, path, flags);
}
