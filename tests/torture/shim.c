/* System calls that change files below one folder: counted, traced, failed, torn, or the last thing a process does.

   Preloaded (LD_PRELOAD) and armed from within by `torture_arm`, or at start by KALM_TORTURE=mode:nth:errno:folder.
   Nothing but calls on the watched folder is touched. stdio writes inside libc, out of reach of preloading, so that its
   own calls (fwrite, fflush, fclose) are counted in their place: what is only in a buffer dies with the process.

   See shim.py for the modes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL, FAIL_ONCE, SHORT };
enum kind { WRITE, SYNC, RENAME, LINK, UNLINK, TRUNCATE, OPEN, MKDIR, RMDIR };
enum action { DO, DO_AND_DIE, HALF_AND_DIE, HALF, REFUSE };

static const char *const KINDS[] = {"write", "sync", "rename", "link", "unlink", "truncate", "open", "mkdir", "rmdir"};

static volatile int armed_mode = OFF;
static int error_number, lock_error;
static long target, calls;
static long clock_jump, clock_calls;
static char folder[PATH_MAX];
static size_t folder_length;
static char *trace;
static size_t trace_length;
static char shadow[PATH_MAX];
static __thread long this_call;
enum { TRACE_BYTES = 1 << 22 };

#define NEXT(name) \
  static __typeof__(&name) next; \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* arming */

void torture_arm(const char *path, int mode, long nth, int errnum) {
  if (!realpath(path, folder)) strncpy(folder, path, sizeof folder - 1);
  folder_length = strlen(folder);
  target = nth, error_number = errnum, calls = 0, trace_length = 0;
  if (mode == COUNT && !trace) trace = malloc(TRACE_BYTES);
  armed_mode = mode;
}

void torture_disarm(void) { armed_mode = OFF, lock_error = 0, clock_jump = 0; }

void torture_shadow(const char *path) { snprintf(shadow, sizeof shadow, "%s", path); } /* see `keep` */

void torture_locks(int errnum) { lock_error = errnum; } /* every lock below the folder fails with it */

void torture_clock(long seconds) { clock_jump = seconds; } /* the wall clock jumps to and fro by it at every look */

long torture_calls(void) { return calls; }

long torture_trace(const char **text) {
  *text = trace;
  return (long)trace_length;
}

__attribute__((constructor)) static void arm_at_start(void) {
  const char *said = getenv("KALM_TORTURE");
  int mode, errnum, at = 0;
  long nth;
  if (said && sscanf(said, "%d:%ld:%d:%n", &mode, &nth, &errnum, &at) == 3 && at) torture_arm(said + at, mode, nth, errnum);
}

/* which calls are watched, and what becomes of them */

static int below(const char *path) {
  return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return 1;
}

static int fd_below(int fd, char *path) { return armed_mode != OFF && path_of(fd, path) && below(path); }

static int name_below(int dir, const char *name, char *path) {
  if (armed_mode == OFF) return 0;
  if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char base[PATH_MAX];
    if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(dir, base)) return 0;
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
  }
  return below(path);
}

static const char *relative(const char *path) { return path[folder_length] ? path + folder_length + 1 : ""; }

/* A line of the trace; `detail`: where a rename or a link comes from, or how a file is opened. */
static void note(enum kind kind, const char *call, const char *path, const char *detail) {
  const size_t longest = 2 * PATH_MAX + 64;
  if (!trace || trace_length + longest > TRACE_BYTES) return;
  trace_length += snprintf(trace + trace_length, longest, "%s\t%s\t%s\t%s\n", KINDS[kind], call, relative(path), detail);
}

/* What a file held when it was synced, as a file of the shadow folder, named by the number of the call. */
static void keep(int fd) {
  struct stat of;
  char name[2 * PATH_MAX], block[1 << 16];
  if (!*shadow || fstat(fd, &of) || !S_ISREG(of.st_mode)) return;
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  int from = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY);
  snprintf(name, sizeof name, "%s/%ld", shadow, this_call);
  int to = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (ssize_t size; (size = syscall(SYS_read, from, block, sizeof block)) > 0;) syscall(SYS_write, to, block, size);
  close(from), close(to);
}

static int refuses(int errnum, enum kind kind) {
  if (errnum == ENOSPC) return kind != UNLINK && kind != RMDIR;
  if (errnum == EACCES) return kind != WRITE && kind != SYNC && kind != TRUNCATE;
  if (errnum == EROFS) return kind != SYNC;
  return 1;
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

static enum action decide(enum kind kind, const char *call, const char *path, const char *detail) {
  long here = this_call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  switch (armed_mode) {
    case COUNT: note(kind, call, path, detail); return DO;
    case KILL_BEFORE: if (here == target) die(); return DO;
    case KILL_AFTER: return here == target ? DO_AND_DIE : DO;
    case TORN: return here != target ? DO : kind == WRITE ? HALF_AND_DIE : DO_AND_DIE;
    case FAIL: return here >= target && refuses(error_number, kind) ? REFUSE : DO;
    case FAIL_ONCE: return here == target && refuses(error_number, kind) ? REFUSE : DO;
    case SHORT:
      if (here == target && kind == WRITE) return HALF;
      return here > target && refuses(error_number, kind) ? REFUSE : DO;
    default: return DO;
  }
}

#define GUARD_DETAILED(kind, is_watched, call, detail) \
  char path[PATH_MAX]; \
  enum action action = (is_watched) ? decide(kind, #call, path, detail) : DO; \
  if (action == REFUSE) return errno = error_number, -1

#define GUARD(kind, is_watched, call) GUARD_DETAILED(kind, is_watched, call, "")

#define FINISH(type, expression) \
  type result = (expression); \
  if (action == DO_AND_DIE || action == HALF_AND_DIE) die(); \
  return result

#define FINISH_SYNC(fd, expression) \
  int result = (expression); \
  if (action == DO_AND_DIE) die(); \
  if (!result && armed_mode == COUNT && fd_below(fd, path)) keep(fd); \
  return result

static int is_half(enum action action) { return action == HALF || action == HALF_AND_DIE; }

static size_t part(enum action action, size_t size) { return is_half(action) ? (size + 1) / 2 : size; }

/* writes */

ssize_t write(int fd, const void *data, size_t size) {
  NEXT(write);
  GUARD(WRITE, fd_below(fd, path), write);
  FINISH(ssize_t, next(fd, data, part(action, size)));
}

#define PWRITE(name, offset_type) \
  ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
    NEXT(name); \
    GUARD(WRITE, fd_below(fd, path), name); \
    ssize_t written = next(fd, data, part(action, size), offset); \
    if (armed_mode == COUNT && fd_below(fd, path) && fcntl(fd, F_GETFL) & O_DSYNC) keep(fd); \
    FINISH(ssize_t, written); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static size_t total(const struct iovec *parts, int count) {
  size_t size = 0;
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  return size;
}

static int cut(const struct iovec *parts, int count, struct iovec *kept, enum action action) {
  size_t left = part(action, total(parts, count));
  int i = 0;
  for (; i < count && left; i++) {
    kept[i] = parts[i];
    if (kept[i].iov_len > left) kept[i].iov_len = left;
    left -= kept[i].iov_len;
  }
  return i;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  NEXT(writev);
  GUARD(WRITE, fd_below(fd, path), writev);
  if (!is_half(action)) { FINISH(ssize_t, next(fd, parts, count)); }
  struct iovec kept[IOV_MAX];
  FINISH(ssize_t, next(fd, kept, cut(parts, count, kept, action)));
}

#define PWRITEV(name, offset_type) \
  ssize_t name(int fd, const struct iovec *parts, int count, offset_type offset) { \
    NEXT(name); \
    GUARD(WRITE, fd_below(fd, path), name); \
    if (!is_half(action)) { FINISH(ssize_t, next(fd, parts, count, offset)); } \
    struct iovec kept[IOV_MAX]; \
    FINISH(ssize_t, next(fd, kept, cut(parts, count, kept, action), offset)); \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define SENDFILE(name, offset_type) \
  ssize_t name(int out, int in, offset_type *offset, size_t size) { \
    NEXT(name); \
    GUARD(WRITE, fd_below(out, path), name); \
    FINISH(ssize_t, next(out, in, offset, part(action, size))); \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
  NEXT(copy_file_range);
  GUARD(WRITE, fd_below(out, path), copy_file_range);
  FINISH(ssize_t, next(in, in_at, out, out_at, part(action, size), flags));
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
  NEXT(fwrite);
  char path[PATH_MAX];
  enum action action = fd_below(fileno(file), path) ? decide(WRITE, "fwrite", path, "") : DO;
  if (action == REFUSE) return errno = error_number, 0;
  if (is_half(action)) { /* through to the disk, as if the buffer had been full */
    size_t written = next(data, size, count / 2, file);
    if (count == 1) next(data, 1, size / 2, file);
    fflush_unlocked(file);
    if (action == HALF_AND_DIE) die();
    errno = error_number;
    return written;
  }
  FINISH(size_t, next(data, size, count, file));
}

int fflush(FILE *file) {
  NEXT(fflush);
  if (!file) return next(file);
  GUARD(WRITE, fd_below(fileno(file), path), fflush);
  FINISH(int, next(file));
}

int fclose(FILE *file) {
  NEXT(fclose);
  char path[PATH_MAX];
  int watched = __fwritable(file) && fileno(file) >= 0 && fd_below(fileno(file), path);
  enum action action = watched ? decide(WRITE, "fclose", path, "") : DO;
  if (action == REFUSE || action == HALF) {
    __fpurge(file);
    next(file);
    return errno = error_number, EOF;
  }
  if (action == HALF_AND_DIE) action = DO_AND_DIE;
  FINISH(int, next(file));
}

/* syncs */

int fsync(int fd) {
  NEXT(fsync);
  GUARD(SYNC, fd_below(fd, path), fsync);
  FINISH_SYNC(fd, next(fd));
}

int fdatasync(int fd) {
  NEXT(fdatasync);
  GUARD(SYNC, fd_below(fd, path), fdatasync);
  FINISH_SYNC(fd, next(fd));
}

int msync(void *address, size_t size, int flags) { /* of whichever mapped file: only watched ones are mapped to write */
  NEXT(msync);
  GUARD(SYNC, (strcpy(path, folder), armed_mode != OFF), msync);
  FINISH(int, next(address, size, flags));
}

/* names */

static const char *origin_of(int dir, const char *from, char *path) {
  return name_below(dir, from, path) ? relative(path) : "";
}

int rename(const char *from, const char *to) {
  NEXT(rename);
  char origin[PATH_MAX];
  GUARD_DETAILED(RENAME, name_below(AT_FDCWD, to, path), rename, origin_of(AT_FDCWD, from, origin));
  FINISH(int, next(from, to));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
  NEXT(renameat);
  char origin[PATH_MAX];
  GUARD_DETAILED(RENAME, name_below(to_dir, to, path), renameat, origin_of(from_dir, from, origin));
  FINISH(int, next(from_dir, from, to_dir, to));
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  NEXT(renameat2);
  char origin[PATH_MAX];
  GUARD_DETAILED(RENAME, name_below(to_dir, to, path), renameat2, origin_of(from_dir, from, origin));
  FINISH(int, next(from_dir, from, to_dir, to, flags));
}

int link(const char *from, const char *to) {
  NEXT(link);
  char origin[PATH_MAX];
  GUARD_DETAILED(LINK, name_below(AT_FDCWD, to, path), link, origin_of(AT_FDCWD, from, origin));
  FINISH(int, next(from, to));
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  NEXT(linkat);
  char origin[PATH_MAX];
  GUARD_DETAILED(LINK, name_below(to_dir, to, path), linkat, origin_of(from_dir, from, origin));
  FINISH(int, next(from_dir, from, to_dir, to, flags));
}

int symlink(const char *from, const char *to) {
  NEXT(symlink);
  GUARD(LINK, name_below(AT_FDCWD, to, path), symlink);
  FINISH(int, next(from, to));
}

int unlink(const char *name) {
  NEXT(unlink);
  GUARD(UNLINK, name_below(AT_FDCWD, name, path), unlink);
  FINISH(int, next(name));
}

int unlinkat(int dir, const char *name, int flags) {
  NEXT(unlinkat);
  GUARD(flags & AT_REMOVEDIR ? RMDIR : UNLINK, name_below(dir, name, path), unlinkat);
  FINISH(int, next(dir, name, flags));
}

int rmdir(const char *name) {
  NEXT(rmdir);
  GUARD(RMDIR, name_below(AT_FDCWD, name, path), rmdir);
  FINISH(int, next(name));
}

int mkdir(const char *name, mode_t permissions) {
  NEXT(mkdir);
  GUARD(MKDIR, name_below(AT_FDCWD, name, path), mkdir);
  FINISH(int, next(name, permissions));
}

int mkdirat(int dir, const char *name, mode_t permissions) {
  NEXT(mkdirat);
  GUARD(MKDIR, name_below(dir, name, path), mkdirat);
  FINISH(int, next(dir, name, permissions));
}

/* lengths */

#define FTRUNCATE(name, offset_type) \
  int name(int fd, offset_type size) { \
    NEXT(name); \
    GUARD(TRUNCATE, fd_below(fd, path), name); \
    FINISH(int, next(fd, size)); \
  }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define TRUNCATE_BY_NAME(name, offset_type) \
  int name(const char *file, offset_type size) { \
    NEXT(name); \
    GUARD(TRUNCATE, name_below(AT_FDCWD, file, path), name); \
    FINISH(int, next(file, size)); \
  }
TRUNCATE_BY_NAME(truncate, off_t)
TRUNCATE_BY_NAME(truncate64, off64_t)

int fallocate(int fd, int how, off_t offset, off_t size) {
  NEXT(fallocate);
  GUARD(TRUNCATE, fd_below(fd, path), fallocate);
  FINISH(int, next(fd, how, offset, size));
}

int posix_fallocate(int fd, off_t offset, off_t size) {
  NEXT(posix_fallocate);
  char path[PATH_MAX];
  enum action action = fd_below(fd, path) ? decide(TRUNCATE, "posix_fallocate", path, "") : DO;
  if (action == REFUSE) return error_number;
  FINISH(int, next(fd, offset, size));
}

/* opening for writing */

static int is_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

static const char *opening(int flags) {
  if ((flags & O_TMPFILE) == O_TMPFILE) return "nameless";
  if (!(flags & O_CREAT)) return flags & O_TRUNC ? "truncate" : "";
  return flags & O_TRUNC ? "create,truncate" : "create";
}

static mode_t permissions_of(int flags, va_list rest) {
  return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN_FUNCTION(name) \
  int name(const char *file, int flags, ...) { \
    NEXT(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t permissions = permissions_of(flags, rest); \
    va_end(rest); \
    GUARD_DETAILED(OPEN, is_writing(flags) && name_below(AT_FDCWD, file, path), name, opening(flags)); \
    FINISH(int, next(file, flags, permissions)); \
  }
OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)

#define OPENAT_FUNCTION(name) \
  int name(int dir, const char *file, int flags, ...) { \
    NEXT(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t permissions = permissions_of(flags, rest); \
    va_end(rest); \
    GUARD_DETAILED(OPEN, is_writing(flags) && name_below(dir, file, path), name, opening(flags)); \
    FINISH(int, next(dir, file, flags, permissions)); \
  }
OPENAT_FUNCTION(openat)
OPENAT_FUNCTION(openat64)

#define FOPEN_FUNCTION(name) \
  FILE *name(const char *file, const char *how) { \
    NEXT(name); \
    char path[PATH_MAX]; \
    int writes = how[0] != 'r' || strchr(how, '+'); \
    enum action action = writes && name_below(AT_FDCWD, file, path) ? decide(OPEN, #name, path, how[0] == 'w' ? "create,truncate" : "create") : DO; \
    if (action == REFUSE) return errno = error_number, NULL; \
    FINISH(FILE *, next(file, how)); \
  }
FOPEN_FUNCTION(fopen)
FOPEN_FUNCTION(fopen64)

/* locks and clocks */

int flock(int fd, int operation) {
  NEXT(flock);
  char path[PATH_MAX];
  if (lock_error && !(operation & LOCK_UN) && fd_below(fd, path)) return errno = lock_error, -1;
  return next(fd, operation);
}

#define FCNTL(name) \
  int name(int fd, int command, ...) { \
    NEXT(name); \
    va_list rest; \
    va_start(rest, command); \
    void *argument = va_arg(rest, void *); \
    va_end(rest); \
    int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
    char path[PATH_MAX]; \
    if (lock_error && locks && fd_below(fd, path)) return errno = lock_error, -1; \
    return next(fd, command, argument); \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

static long jump(void) { return __atomic_add_fetch(&clock_calls, 1, __ATOMIC_SEQ_CST) % 2 ? clock_jump : -clock_jump; }

int clock_gettime(clockid_t which, struct timespec *now) {
  NEXT(clock_gettime);
  int result = next(which, now);
  if (clock_jump && which == CLOCK_REALTIME) now->tv_sec += jump();
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  NEXT(gettimeofday);
  int result = next(now, zone);
  if (clock_jump) now->tv_sec += jump();
  return result;
}

time_t time(time_t *where) {
  NEXT(time);
  time_t now = next(NULL) + (clock_jump ? jump() : 0);
  if (where) *where = now;
  return now;
}
