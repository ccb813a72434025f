/*
 * Faults that a process cannot make for itself, for `cargo xtask chaos`. The library is loaded into the server with
 * LD_PRELOAD (Linux, 64 bits, glibc). It replaces the functions of libc below by ones that make the same system call.
 *
 * Power loss: each write to a file below $FAULT_FOLDER is recorded in $FAULT_JOURNAL, with the bytes that it replaced.
 * fsync and fdatasync are recorded, too. After kill -9, chaos takes back the writes that were not synced: that is what a
 * power cut may do. With $FAULT_LYING_DISK set, fsync is not recorded: the disk only claims to have synced.
 *
 * Clock jumps: the first 8 bytes of $FAULT_CLOCK are a signed number of seconds. It is added to the wall clock.
 *
 * The format of a record is read in faults.rs:
 *   u64 kind, u64 path length, u64 offset, u64 old size of the file, u64 length of the old bytes, u64 length of the new
 *   bytes; then the path, the old bytes and the new bytes. A truncation has its new size as offset and no new bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { KIND_WRITE = 1, KIND_TRUNCATE = 2, KIND_SYNC = 3 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static int journal = -1;
static int is_lying;
static const volatile int64_t *clock_offset;

__attribute__((constructor)) static void start(void) {
    folder = getenv("FAULT_FOLDER");
    const char *path = getenv("FAULT_JOURNAL");
    if (folder && path) {
        journal = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    is_lying = getenv("FAULT_LYING_DISK") != NULL;
    path = getenv("FAULT_CLOCK");
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (file >= 0) {
        void *memory = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
        clock_offset = memory == MAP_FAILED ? NULL : memory;
        close(file);
    }
}

/*
 * The path of a regular file below the folder; 0 if it is none. SQLite's index of the log does not count: it is never
 * synced. Neither does a file that cannot be read here, such as the one with the process id.
 */
static size_t path_of(int file, char path[4096], uint64_t *size) {
    struct stat status;
    if (journal < 0 || file == journal || fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
        return 0;
    }
    if ((fcntl(file, F_GETFL) & O_ACCMODE) != O_RDWR) {
        return 0;
    }
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, 4095);
    size_t prefix = strlen(folder);
    if (length <= (ssize_t)prefix || strncmp(path, folder, prefix) != 0) {
        return 0;
    }
    path[length] = 0;
    if (length > 4 && strcmp(path + length - 4, "-shm") == 0) {
        return 0;
    }
    *size = (uint64_t)status.st_size;
    return (size_t)length;
}

static void append(const void *bytes, size_t length) {
    const char *rest = bytes;
    while (length > 0) {
        ssize_t written = syscall(SYS_write, journal, rest, length);
        if (written <= 0) {
            abort(); /* Without its journal the test would mean nothing. */
        }
        rest += written;
        length -= (size_t)written;
    }
}

static void record(uint64_t kind, int file, const char *path, size_t path_length, uint64_t offset, uint64_t size,
                   uint64_t old_length, const void *bytes, uint64_t length) {
    uint64_t head[6] = {kind, path_length, offset, size, old_length, length};
    append(head, sizeof head);
    append(path, path_length);
    char buffer[65536];
    for (uint64_t done = 0; done < old_length;) {
        uint64_t part = old_length - done < sizeof buffer ? old_length - done : sizeof buffer;
        ssize_t got = syscall(SYS_pread64, file, buffer, part, (off_t)(offset + done));
        if (got <= 0) {
            abort();
        }
        append(buffer, (size_t)got);
        done += (uint64_t)got;
    }
    append(bytes, length);
}

static ssize_t write_at(int file, const void *bytes, size_t length, off_t offset, int has_offset) {
    char path[4096];
    uint64_t size;
    size_t path_length = path_of(file, path, &size);
    if (path_length == 0) {
        return has_offset ? syscall(SYS_pwrite64, file, bytes, length, offset)
                          : syscall(SYS_write, file, bytes, length);
    }
    pthread_mutex_lock(&lock);
    path_length = path_of(file, path, &size);
    uint64_t at = has_offset ? (uint64_t)offset : (uint64_t)lseek(file, 0, SEEK_CUR);
    uint64_t old_length = at >= size ? 0 : (size - at < length ? size - at : length);
    record(KIND_WRITE, file, path, path_length, at, size, old_length, bytes, length);
    ssize_t result = has_offset ? syscall(SYS_pwrite64, file, bytes, length, offset)
                                : syscall(SYS_write, file, bytes, length);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static int truncate_at(int file, off_t length) {
    char path[4096];
    uint64_t size;
    size_t path_length = path_of(file, path, &size);
    if (path_length == 0) {
        return (int)syscall(SYS_ftruncate, file, length);
    }
    pthread_mutex_lock(&lock);
    path_length = path_of(file, path, &size);
    uint64_t to = (uint64_t)length;
    record(KIND_TRUNCATE, file, path, path_length, to, size, size > to ? size - to : 0, "", 0);
    int result = (int)syscall(SYS_ftruncate, file, length);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static int sync_with(long call, int file) {
    char path[4096];
    uint64_t size;
    size_t path_length = path_of(file, path, &size);
    if (path_length == 0) {
        return (int)syscall(call, file);
    }
    /* The lock is held meanwhile, so that no write comes between the sync and its record. */
    pthread_mutex_lock(&lock);
    int result = (int)syscall(call, file);
    int error = errno;
    if (result == 0 && !is_lying) {
        record(KIND_SYNC, file, path, path_length, 0, 0, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

ssize_t write(int file, const void *bytes, size_t length) { return write_at(file, bytes, length, 0, 0); }
ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) { return write_at(file, bytes, length, at, 1); }
ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) { return write_at(file, bytes, length, at, 1); }
int ftruncate(int file, off_t length) { return truncate_at(file, length); }
int ftruncate64(int file, off64_t length) { return truncate_at(file, length); }
int fsync(int file) { return sync_with(SYS_fsync, file); }
int fdatasync(int file) { return sync_with(SYS_fdatasync, file); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock_offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += *clock_offset;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) {
        *result = now.tv_sec;
    }
    return now.tv_sec;
}
