/*
 * SPDX-License-Identifier: MIT
 *
 * listener.c: listening sockets, and the removal of what is left in folders.
 * When and whether to accept is host.c's business.
 */

#include "listener.h"
#include "agreed.h"
#include "log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* Opens the folder that a path lies in; *name is the path's last part. */
static int open_folder(const char *path, const char **name)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    int fd;

    *name = slash ? slash + 1 : path;
    snprintf(folder, sizeof(folder), "%.*s",
             slash ? (int)(slash - path + 1) : 1, slash ? path : ".");
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        log_line(VLOG_ERROR, "cannot open the folder %s of %s: %s", folder,
                 path, strerror(errno));
    }
    return fd;
}

/*
 * Takes the lock of a socket's path, a file beside it: against others of this
 * user who find the same socket stale. The folder would not do, since in /tmp
 * everybody could hold its lock. Returns the file, or -1.
 */
static int take_lock(int folder, const char *name)
{
    for (unsigned i = 0;; i++) {
        struct stat ours, there;
        int err = EWOULDBLOCK;
        int fd = openat(folder, name,
                        O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
                        0600);

        if (fd < 0 || fstat(fd, &ours) < 0) {
            return -1;
        }
        if (!S_ISREG(ours.st_mode) || ours.st_uid != geteuid()) {
            err = EPERM;
        } else if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            err = errno;
        } else if (fstatat(folder, name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
                   there.st_dev == ours.st_dev && there.st_ino == ours.st_ino) {
            return fd; /* and not removed by who had it before */
        }
        close(fd);
        if (err != EWOULDBLOCK || i == LISTENER_LOCK_TRIES) {
            errno = err;
            return -1;
        }
        usleep(LISTENER_MS_LOCK * 1000);
    }
}

/* Removes what is left of a dead process; false: the path is taken. */
static bool clear_path(const struct listener *l, const char *path,
                       const struct sockaddr_un *a)
{
    struct stat st;
    int fd, err;

    if (fstatat(l->folder, l->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno == ENOENT) {
            return true;
        }
        log_line(VLOG_ERROR, "cannot look at %s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISSOCK(st.st_mode)) {
        log_line(VLOG_ERROR,
                 "%s exists and is not a socket; remove it or "
                 "choose another path",
                 path);
        return false;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    err = fd < 0 || connect(fd, (const struct sockaddr *)a, sizeof(*a)) == 0 ?
              0 :
              errno;
    close_fd(&fd);
    if (err != ECONNREFUSED) {
        log_line(VLOG_ERROR,
                 "%s is in use by another process; end that one or "
                 "choose another path",
                 path);
        return false;
    }
    if (unlinkat(l->folder, l->name, 0) < 0) {
        log_line(VLOG_ERROR, "cannot remove the stale socket %s: %s", path,
                 strerror(errno));
        return false;
    }
    log_line(VLOG_INFO, "removed the stale socket %s", path);
    return true;
}

void listener_init(struct listener *l)
{
    memset(l, 0, sizeof(*l));
    l->fd = l->folder = -1;
    l->port = -1;
}

bool listener_take(struct listener *l, int fd, const char *option)
{
    int on = 0;
    socklen_t len = sizeof(on);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) < 0 || !on) {
        log_line(VLOG_ERROR, "%s=%d is not a listening socket", option, fd);
        return false;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    l->fd = fd;
    l->family = AF_UNIX;
    return true;
}

int listener_open(struct listener *l, const struct host_address *a)
{
    const int one = 1;

    l->family = a->addr.ss_family;
    l->fd = socket(l->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 ||
        setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        (a->shared && l->family == AF_INET6 &&
         setsockopt(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) < 0) ||
        bind(l->fd, (const struct sockaddr *)&a->addr, a->len) < 0 ||
        listen(l->fd, SOMAXCONN) < 0) {
        int err = errno;

        close_fd(&l->fd);
        return -err;
    }
    return 0;
}

/* With its path's lock held, from the look at what is there to the end. */
static bool make_unix(struct listener *l, const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    struct stat st;

    strcpy(a.sun_path, path);
    if (!clear_path(l, path, &a)) {
        return false;
    }
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || bind(l->fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        log_line(VLOG_ERROR, "cannot make %s: %s", path, strerror(errno));
        return false;
    }
    if (listen(l->fd, SOMAXCONN) < 0 ||
        fstatat(l->folder, l->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        log_line(VLOG_ERROR, "cannot listen on %s: %s", path, strerror(errno));
        unlinkat(l->folder, l->name, 0);
        return false;
    }
    l->family = AF_UNIX;
    l->path = path;
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    return true;
}

bool listener_open_unix(struct listener *l, const char *path)
{
    char lock_name[VSOCK_MAX_PATH + sizeof(LISTENER_LOCK)];
    bool made = false;
    int lock = -1;

    if (strlen(path) > VSOCK_MAX_PATH) {
        log_line(VLOG_ERROR, "%s has more than %d bytes", path, VSOCK_MAX_PATH);
        return false;
    }
    l->folder = open_folder(path, &l->name);
    if (l->folder >= 0) {
        snprintf(lock_name, sizeof(lock_name), "%s" LISTENER_LOCK, l->name);
        lock = take_lock(l->folder, lock_name);
        if (lock < 0) {
            log_line(VLOG_ERROR, "cannot lock %s" LISTENER_LOCK ": %s", path,
                     strerror(errno));
        }
    }
    if (lock >= 0) {
        made = make_unix(l, path);
        unlinkat(l->folder, lock_name, 0);
        close(lock);
    }
    if (!made) {
        close_fd(&l->fd);
        close_fd(&l->folder);
    }
    return made;
}

void listener_close(struct listener *l)
{
    struct stat st;

    if (l->path && fstatat(l->folder, l->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        st.st_dev == l->dev && st.st_ino == l->ino) {
        unlinkat(l->folder, l->name, 0);
    }
    l->path = NULL;
    close_fd(&l->folder);
    close_fd(&l->fd);
}

void cleanup_init(struct cleanup *c)
{
    c->fd = c->parent = -1;
}

bool cleanup_open(struct cleanup *c, const char *path)
{
    c->path = path;
    c->parent = open_folder(path, &c->name);
    if (c->parent < 0) {
        return false;
    }
    c->fd = openat(c->parent, c->name,
                   O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (c->fd < 0) {
        log_line(VLOG_ERROR, "cannot open the folder %s: %s", path,
                 strerror(errno));
    }
    return c->fd >= 0;
}

void cleanup_remove(struct cleanup *c)
{
    DIR *dir = c->fd < 0 ? NULL : fdopendir(c->fd);
    struct dirent *e;
    struct stat st;

    while (dir && (e = readdir(dir))) {
        if (fstatat(c->fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            (S_ISREG(st.st_mode) || S_ISSOCK(st.st_mode))) {
            unlinkat(c->fd, e->d_name, 0);
        }
    }
    if (dir) {
        closedir(dir);
        c->fd = -1;
    }
    if (unlinkat(c->parent, c->name, AT_REMOVEDIR) < 0) {
        log_line(VLOG_WARN, "cannot remove %s: %s", c->path, strerror(errno));
    }
}

void cleanup_close(struct cleanup *c)
{
    close_fd(&c->fd);
    close_fd(&c->parent);
}
