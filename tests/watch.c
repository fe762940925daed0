/* Preloaded into a process and all it starts: writes down and refuses what would reach a network, by any language's
   code, and writes down every file that is made or opened for writing. One line each, appended to $WATCH_LOG.
   test_offline.py compiles it. glibc on Linux. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void note(const char *what, const char *about) {
    const char *log = getenv("WATCH_LOG");
    if (!log) return;
    char line[2 * PATH_MAX];
    int saved = errno, length = snprintf(line, sizeof line, "%s %s\n", what, about);
    long fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, (size_t)length);
        syscall(SYS_close, fd);
    }
    errno = saved;
}

/* Names. Numbers need no query. */

static int is_query(const char *host) {
    unsigned char address[16];
    return host && *host && strcmp(host, "localhost") && inet_pton(AF_INET, host, address) != 1 &&
           inet_pton(AF_INET6, host, address) != 1;
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (is_query(host)) return note("query", host), EAI_FAIL;
    REAL(getaddrinfo);
    return real(host, service, hints, found);
}

struct hostent *gethostbyname(const char *host) {
    if (is_query(host)) return note("query", host), NULL;
    REAL(gethostbyname);
    return real(host);
}

/* Addresses: loopback and sockets of this machine are none, but for what answers queries there. */

static int leaves(const char *what, const struct sockaddr *to) {
    char text[200] = "", address[INET6_ADDRSTRLEN] = "";
    int port = 0, local = 1;
    if (!to) return 0;
    if (to->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)to;
        port = ntohs(in->sin_port);
        local = ntohl(in->sin_addr.s_addr) >> 24 == 127;
        inet_ntop(AF_INET, &in->sin_addr, address, sizeof address);
    } else if (to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)to;
        port = ntohs(in->sin6_port);
        local = IN6_IS_ADDR_LOOPBACK(&in->sin6_addr);
        inet_ntop(AF_INET6, &in->sin6_addr, address, sizeof address);
    } else if (to->sa_family == AF_UNIX && strstr(((const struct sockaddr_un *)(const void *)to)->sun_path, "resolve")) {
        local = 0;
    }
    if (local && port != 53) return 0;
    snprintf(text, sizeof text, "%s %d", address, port);
    note(what, text);
    errno = ENETUNREACH;
    return 1;
}

int connect(int fd, const struct sockaddr *to, socklen_t size) {
    if (leaves("connect", to)) return -1;
    REAL(connect);
    return real(fd, to, size);
}

ssize_t sendto(int fd, const void *data, size_t count, int flags, const struct sockaddr *to, socklen_t size) {
    if (leaves("send", to)) return -1;
    REAL(sendto);
    return real(fd, data, count, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (leaves("send", message->msg_name)) return -1;
    REAL(sendmsg);
    return real(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
    for (unsigned j = 0; j < count; j++)
        if (leaves("send", messages[j].msg_hdr.msg_name)) return -1;
    REAL(sendmmsg);
    return real(fd, messages, count, flags);
}

/* Files. */

static int made(int result, int folder, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX] = "", link[64];
    if (result < 0) return result;
    if (path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        if (readlink(link, base, sizeof base - 1) < 0) base[0] = 0;
    }
    snprintf(whole, sizeof whole, base[0] ? "%s/%s" : "%s%s", base, path);
    note("file", whole);
    return result;
}

#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define MODE(flags)                                  \
    mode_t mode = 0;                                 \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {         \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode = va_arg(rest, mode_t);                 \
        va_end(rest);                                \
    }

#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        MODE(flags)                                                                      \
        REAL(name);                                                                      \
        int fd = real(path, flags, mode);                                                \
        return flags & WRITES ? made(fd, AT_FDCWD, path) : fd;                           \
    }
#define OPENAT(name)                                                                     \
    int name(int folder, const char *path, int flags, ...) {                             \
        MODE(flags)                                                                      \
        REAL(name);                                                                      \
        int fd = real(folder, path, flags, mode);                                        \
        return flags & WRITES ? made(fd, folder, path) : fd;                             \
    }
#define FOPEN(name)                                                                      \
    FILE *name(const char *path, const char *mode) {                                     \
        REAL(name);                                                                      \
        FILE *file = real(path, mode);                                                   \
        if (file && strpbrk(mode, "wa+")) made(0, AT_FDCWD, path);                       \
        return file;                                                                     \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return made(real(path, mode), AT_FDCWD, path);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    return made(real(folder, path, mode), folder, path);
}

int rename(const char *from, const char *path) {
    REAL(rename);
    return made(real(from, path), AT_FDCWD, path);
}
