/* Stands between a process and libc (LD_PRELOAD): counts its calls on files, makes one of them fail, and records them.

   SOAK_PATHS  the folders whose files count, separated by colons
   SOAK_STATE  a file of counters, which all processes of a run share
   SOAK_FAULT  "kind role n mode errno": the n-th call of a kind in a role; modes: once, sticky, short, kill
   SOAK_TRACE  a file to which the changes of files and folders are appended
   SOAK_MAIN   the process id of the run's first process; that of the process that loads this, where it is not set

   The roles are main, writer, worker (as the processes name themselves) and server (all others). */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, READ, WRITE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, MMAP, LOCK, TRUNCATE, CLOSE, STAT, LIST, KINDS };
static const char *kinds[] = {"open", "read", "write", "fsync", "rename", "link", "unlink", "mkdir",
                              "rmdir", "mmap", "flock", "ftruncate", "close", "stat", "list"};
static const char *roles[] = {"main", "writer", "worker", "server"};
enum { ROLES = 4, LONGEST = 8192 };

struct state {
    uint32_t calls[ROLES][KINDS];
    char struck[512]; /* the path of the last call that was struck */
};

static struct state *state;
static int trace = -1, main_pid, fault_kind = -1, fault_role, fault_errno;
static unsigned fault_number;
static char fault_mode, paths[LONGEST];

/* glibc 2.33 and later have stat() and its kind as functions of their own; opendir() calls none of these. */
#define REAL(name) (__typeof__(&name)) real(#name)

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

void soak_configure(void) {
    const char *text = getenv("SOAK_PATHS");
    snprintf(paths, sizeof paths, "%s", text ? text : "");
    text = getenv("SOAK_MAIN");
    main_pid = text ? atoi(text) : getpid();
    if (!text) {
        char number[16];
        snprintf(number, sizeof number, "%d", main_pid);
        setenv("SOAK_MAIN", number, 1);
    }
    state = NULL;
    if ((text = getenv("SOAK_STATE"))) {
        int file = syscall(SYS_openat, AT_FDCWD, text, O_RDWR | O_CLOEXEC);
        void *memory = (void *)syscall(SYS_mmap, NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        syscall(SYS_close, file);
        if (memory == MAP_FAILED) abort();
        state = memory;
    }
    trace = -1;
    if ((text = getenv("SOAK_TRACE"))) {
        int file = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        trace = syscall(SYS_fcntl, file, F_DUPFD_CLOEXEC, 700);
        syscall(SYS_close, file);
    }
    fault_kind = -1;
    char kind[16], role[16], mode[16];
    if ((text = getenv("SOAK_FAULT")) && sscanf(text, "%15s %15s %u %15s %d", kind, role, &fault_number, mode, &fault_errno) == 5) {
        for (int each = 0; each < KINDS; each++)
            if (!strcmp(kind, kinds[each])) fault_kind = each;
        for (int each = 0; each < ROLES; each++)
            if (!strcmp(role, roles[each])) fault_role = each;
        fault_mode = mode[0] == 's' ? mode[1] : mode[0]; /* o(nce), t (sticky), h (short), k(ill) */
    }
}

__attribute__((constructor)) static void load(void) { soak_configure(); }

static int role(void) {
    char name[32] = "";
    int file = syscall(SYS_openat, AT_FDCWD, "/proc/self/comm", O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        syscall(SYS_read, file, name, sizeof name - 1);
        syscall(SYS_close, file);
    }
    if (!strncmp(name, "embedx-writer", 13)) return 1;
    if (!strncmp(name, "embedx-", 7)) return 2;
    return getpid() == main_pid ? 0 : 3;
}

static int counts(const char *path) {
    for (const char *prefix = paths; *prefix;) {
        size_t length = strcspn(prefix, ":");
        if (length && !strncmp(path, prefix, length) && (!path[length] || path[length] == '/')) return 1;
        prefix += length + (prefix[length] == ':');
    }
    return 0;
}

static void path_of(int descriptor, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, LONGEST - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void absolute(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, LONGEST, "%s", name);
        return;
    }
    char start[LONGEST];
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, start, sizeof start) < 0) start[0] = 0;
    } else
        path_of(folder, start);
    if (snprintf(path, LONGEST, "%s/%s", start, name) >= LONGEST) path[0] = 0;
}

/* Counts a call; returns 'f' if it shall fail, with errno set, 's' if it shall do half, and 0 otherwise. */
static char strikes(int kind, const char *path) {
    if (!state || !counts(path)) return 0;
    int before = errno, mine = role();
    unsigned number = __atomic_add_fetch(&state->calls[mine][kind], 1, __ATOMIC_SEQ_CST);
    errno = before;
    if (kind != fault_kind || mine != fault_role || number < fault_number) return 0;
    if (fault_mode != 't' && number > fault_number) return 0;
    snprintf(state->struck, sizeof state->struck, "%s", path);
    if (fault_mode == 'k') {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = fault_errno;
    return fault_mode == 'h' ? 's' : 'f';
}

static char strikes_at(int kind, int folder, const char *name) {
    if (!state || !name) return 0;
    char path[LONGEST];
    absolute(folder, name, path);
    return strikes(kind, path);
}

static char strikes_on(int kind, int descriptor) {
    if (!state) return 0;
    int before = errno;
    char path[LONGEST];
    path_of(descriptor, path);
    errno = before;
    return strikes(kind, path);
}

/* A line of the trace: what was done, the inode, the offset, the lengths of two paths and of the data; then come these. */
static void record(const char *op, uint64_t node, uint64_t offset, const char *first, const char *second, const void *data, size_t size) {
    int before = errno;
    char head[128];
    int length = snprintf(head, sizeof head, "%s %lu %lu %zu %zu %zu\n", op, node, offset, strlen(first), strlen(second), size);
    struct iovec parts[] = {{head, length}, {(void *)first, strlen(first)}, {(void *)second, strlen(second)}, {(void *)data, size}};
    size_t total = length + parts[1].iov_len + parts[2].iov_len + size;
    if (syscall(SYS_writev, trace, parts, 4) != (long)total) abort();
    errno = before;
}

static uint64_t node_of(int descriptor) {
    struct stat facts;
    int before = errno;
    int code = syscall(SYS_newfstatat, descriptor, "", &facts, AT_EMPTY_PATH);
    errno = before;
    return code == 0 ? facts.st_ino : 0;
}

static void record_at(const char *op, int one, const char *first, int other, const char *second) {
    char left[LONGEST], right[LONGEST] = "";
    if (trace < 0) return;
    absolute(one, first, left);
    if (second) absolute(other, second, right);
    struct stat facts = {0};
    int before = errno;
    syscall(SYS_newfstatat, AT_FDCWD, second ? right : left, &facts, AT_SYMLINK_NOFOLLOW);
    errno = before;
    if (counts(left)) record(op, facts.st_ino, 0, left, right, "", 0);
}

static void record_on(const char *op, int descriptor, uint64_t offset, const void *data, size_t size) {
    char path[LONGEST];
    if (trace < 0) return;
    int before = errno;
    path_of(descriptor, path);
    errno = before;
    if (counts(path)) record(op, node_of(descriptor), offset, path, "", data, size);
}

static int exists(int folder, const char *name) {
    int before = errno, code = syscall(SYS_faccessat, folder, name, F_OK);
    errno = before;
    return code == 0;
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    if (strikes_at(OPEN, folder, name)) return -1;
    int before = trace < 0 || exists(folder, name);
    int file = syscall(SYS_openat, folder, name, flags, mode);
    if (file >= 0 && trace >= 0 && flags & O_CREAT && !before) record_at("create", folder, name, 0, NULL);
    if (file >= 0 && trace >= 0 && flags & O_TRUNC && before) record_on("truncate", file, 0, "", 0);
    return file;
}

#define MODE(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list rest; \
        va_start(rest, last); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE(flags) return opened(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE(flags) return opened(folder, name, flags | O_LARGEFILE, mode); }
int __open_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags | O_LARGEFILE, 0); }
int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

FILE *fopen(const char *name, const char *mode) { return strikes_at(OPEN, AT_FDCWD, name) ? NULL : (REAL(fopen))(name, mode); }
FILE *fopen64(const char *name, const char *mode) { return strikes_at(OPEN, AT_FDCWD, name) ? NULL : (REAL(fopen64))(name, mode); }

/* Half of what is asked for, at least one byte. */
#define SHARE(kind, size) \
    char strike = strikes_on(kind, file); \
    if (strike == 'f') return -1; \
    if (strike == 's') size = size > 1 ? size / 2 : size;

ssize_t read(int file, void *data, size_t size) { SHARE(READ, size) return syscall(SYS_read, file, data, size); }
ssize_t pread(int file, void *data, size_t size, off_t at) { SHARE(READ, size) return syscall(SYS_pread64, file, data, size, at); }
ssize_t pread64(int file, void *data, size_t size, off64_t at) { SHARE(READ, size) return syscall(SYS_pread64, file, data, size, at); }
ssize_t readv(int file, const struct iovec *parts, int count) { SHARE(READ, count) return syscall(SYS_readv, file, parts, count); }

static ssize_t written(int file, const void *data, ssize_t size, off_t at) {
    if (size >= 0 && trace >= 0) {
        int before = errno;
        if (at < 0) at = syscall(SYS_lseek, file, 0, SEEK_CUR) - size;
        errno = before;
        record_on("write", file, at, data, size);
    }
    return size;
}

ssize_t write(int file, const void *data, size_t size) { SHARE(WRITE, size) return written(file, data, syscall(SYS_write, file, data, size), -1); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { SHARE(WRITE, size) return written(file, data, syscall(SYS_pwrite64, file, data, size, at), at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { SHARE(WRITE, size) return written(file, data, syscall(SYS_pwrite64, file, data, size, at), at); }

ssize_t writev(int file, const struct iovec *parts, int count) {
    SHARE(WRITE, count)
    ssize_t size = syscall(SYS_writev, file, parts, count), left = size;
    off_t at = trace >= 0 && size > 0 ? syscall(SYS_lseek, file, 0, SEEK_CUR) - size : 0;
    for (int part = 0; trace >= 0 && left > 0; part++) {
        ssize_t taken = left < (ssize_t)parts[part].iov_len ? left : (ssize_t)parts[part].iov_len;
        record_on("write", file, at, parts[part].iov_base, taken);
        at += taken, left -= taken;
    }
    return size;
}

static int synced(int number, const char *op, int file) {
    if (strikes_on(SYNC, file)) return -1;
    struct stat facts = {0};
    syscall(SYS_newfstatat, file, "", &facts, AT_EMPTY_PATH);
    if (number != SYS_syncfs && S_ISDIR(facts.st_mode)) op = "fsync-folder";
    int code = syscall(number, file);
    if (code == 0) record_on(op, file, 0, "", 0);
    return code;
}

int fsync(int file) { return synced(SYS_fsync, "fsync", file); }
int fdatasync(int file) { return synced(SYS_fdatasync, "fsync", file); }
int syncfs(int file) { return synced(SYS_syncfs, "syncfs", file); }

int renameat2(int one, const char *from, int other, const char *to, unsigned flags) {
    if (strikes_at(RENAME, one, from)) return -1;
    int code = syscall(SYS_renameat2, one, from, other, to, flags);
    if (code == 0) record_at(flags & RENAME_EXCHANGE ? "exchange" : "rename", one, from, other, to);
    return code;
}

int renameat(int one, const char *from, int other, const char *to) { return renameat2(one, from, other, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int one, const char *from, int other, const char *to, int flags) {
    if (strikes_at(LINK, other, to)) return -1;
    int code = syscall(SYS_linkat, one, from, other, to, flags);
    if (code == 0) record_at("link", one, from, other, to);
    return code;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *name, int flags) {
    if (strikes_at(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, name)) return -1;
    int code = syscall(SYS_unlinkat, folder, name, flags);
    if (code == 0) record_at(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, name, 0, NULL);
    return code;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int mkdirat(int folder, const char *name, mode_t mode) {
    if (strikes_at(MKDIR, folder, name)) return -1;
    int code = syscall(SYS_mkdirat, folder, name, mode);
    if (code == 0) record_at("mkdir", folder, name, 0, NULL);
    return code;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

static void *mapped(void *where, size_t size, int access, int flags, int file, off_t at) {
    if (file >= 0 && strikes_on(MMAP, file)) return MAP_FAILED;
    void *memory = (void *)syscall(SYS_mmap, where, size, access, flags, file, at);
    if (file >= 0 && memory != MAP_FAILED && flags & MAP_SHARED && access & PROT_WRITE) record_on("unknown-mmap", file, 0, "", 0);
    return memory;
}

void *mmap(void *where, size_t size, int access, int flags, int file, off_t at) { return mapped(where, size, access, flags, file, at); }
void *mmap64(void *where, size_t size, int access, int flags, int file, off64_t at) { return mapped(where, size, access, flags, file, at); }

int flock(int file, int operation) { return strikes_on(LOCK, file) ? -1 : syscall(SYS_flock, file, operation); }

static int cut(int file, off_t length) {
    if (strikes_on(TRUNCATE, file)) return -1;
    int code = syscall(SYS_ftruncate, file, length);
    if (code == 0) record_on("truncate", file, length, "", 0);
    return code;
}

int ftruncate(int file, off_t length) { return cut(file, length); }
int ftruncate64(int file, off64_t length) { return cut(file, length); }

int truncate(const char *name, off_t length) {
    int file = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CLOEXEC);
    if (file < 0) return -1;
    int code = cut(file, length), before = errno;
    syscall(SYS_close, file);
    errno = before;
    return code;
}

int truncate64(const char *name, off64_t length) { return truncate(name, length); }

int close(int file) {
    char strike = strikes_on(CLOSE, file); /* Linux closes a file whose closing fails, too */
    int before = errno, code = syscall(SYS_close, file);
    if (strike) errno = before;
    return strike ? -1 : code;
}

#define STATS(name, buffer) \
    int name(const char *path, struct buffer *facts) { return strikes_at(STAT, AT_FDCWD, path) ? -1 : (REAL(name))(path, facts); }
STATS(stat, stat)
STATS(lstat, stat)
STATS(stat64, stat64)
STATS(lstat64, stat64)

#define STATS_AT(name, buffer) \
    int name(int folder, const char *path, struct buffer *facts, int flags) { \
        if (*path ? strikes_at(STAT, folder, path) : strikes_on(STAT, folder)) return -1; \
        return (REAL(name))(folder, path, facts, flags); \
    }
STATS_AT(fstatat, stat)
STATS_AT(fstatat64, stat64)

#define STATS_ON(name, buffer) \
    int name(int file, struct buffer *facts) { return strikes_on(STAT, file) ? -1 : (REAL(name))(file, facts); }
STATS_ON(fstat, stat)
STATS_ON(fstat64, stat64)

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *facts) {
    if (*path ? strikes_at(STAT, folder, path) : strikes_on(STAT, folder)) return -1;
    return syscall(SYS_statx, folder, path, flags, mask, facts);
}

DIR *opendir(const char *name) { return strikes_at(LIST, AT_FDCWD, name) ? NULL : (REAL(opendir))(name); }
DIR *fdopendir(int file) { return strikes_on(LIST, file) ? NULL : (REAL(fdopendir))(file); }
struct dirent *readdir(DIR *folder) { return strikes_on(LIST, dirfd(folder)) ? NULL : (REAL(readdir))(folder); }
struct dirent64 *readdir64(DIR *folder) { return strikes_on(LIST, dirfd(folder)) ? NULL : (REAL(readdir64))(folder); }

#define UNKNOWN(result, name, arguments, number, target, ...) \
    result name arguments { \
        result code = syscall(number, __VA_ARGS__); \
        if (code >= 0) record_on("unknown-" #name, target, 0, "", 0); \
        return code; \
    }
UNKNOWN(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), SYS_sendfile, to, to, from, at, size)
UNKNOWN(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), SYS_sendfile, to, to, from, at, size)
UNKNOWN(ssize_t, copy_file_range, (int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags), SYS_copy_file_range, to, from, at, to, there, size, flags)
