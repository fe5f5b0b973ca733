/* Fails the system calls FAIL_CALL (open or read) on files whose name holds FAIL_NAME, with the error number FAIL_ERRNO:
   as long as the file FAIL_WHILE exists, or FAIL_TIMES times in each process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failed;

static int fails(const char *call, const char *name) {
    const char *wanted = getenv("FAIL_NAME"), *times = getenv("FAIL_TIMES"), *flag = getenv("FAIL_WHILE");
    if (wanted == NULL || strcmp(getenv("FAIL_CALL"), call) || strstr(name, wanted) == NULL) return 0;
    if (times != NULL && failed >= atoi(times)) return 0;
    if (flag != NULL && access(flag, F_OK)) return 0;
    failed++;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

static int fails_fd(int fd) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = getenv("FAIL_NAME") ? readlink(link, name, sizeof name - 1) : -1;
    if (length < 0) return 0;
    name[length] = 0;
    return fails("read", name);
}

#define OPEN(NAME)                                                          \
    int NAME(const char *path, int flags, ...) {                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        int mode = va_arg(rest, int);                                       \
        va_end(rest);                                                       \
        if (fails("open", path)) return -1;                                 \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #NAME))(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

ssize_t read(int fd, void *buffer, size_t size) {
    if (fails_fd(fd)) return -1;
    return ((ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read"))(fd, buffer, size);
}

#define PREAD(NAME)                                                         \
    ssize_t NAME(int fd, void *buffer, size_t size, off64_t offset) {       \
        if (fails_fd(fd)) return -1;                                        \
        return ((ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, #NAME))(fd, buffer, size, offset); \
    }
PREAD(pread)
PREAD(pread64)
