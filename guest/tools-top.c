/*
 * SPDX-License-Identifier: MIT
 *
 * The tools agent's list of processes, for `nitroctl top`: what /proc says, in
 * lines that each begin with a word.
 *
 *   hz N         ticks in a second, of the times below
 *   uptime ...   /proc/uptime
 *   cpu ...      the first line of /proc/stat
 *   memory N N   kB in all, and available
 *   process ...  /proc/PID/stat
 *   command ...  the command line of the process before it, cut short
 *
 * Kernel threads are left out, which have no program and no parent but 2.
 */

#define _GNU_SOURCE
#include "tools.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COMMAND_MAX 256

static bool say(int sock, const char *key, const char *text)
{
    char line[2048];
    int len = snprintf(line, sizeof(line), "%s %s", key, text);

    len = len < (int)sizeof(line) ? len : (int)sizeof(line) - 1;
    len = strcspn(line, "\n");
    line[len++] = '\n';
    return send_frame(sock, 'o', line, len);
}

static bool say_system(int sock)
{
    char text[1024], memory[64];
    unsigned long total = 0, available = 0;
    const char *at;

    snprintf(text, sizeof(text), "%ld", sysconf(_SC_CLK_TCK));
    if (!say(sock, "hz", text)) {
        return false;
    }
    if (read_proc("uptime", text, sizeof(text)) > 0 &&
        !say(sock, "uptime", text)) {
        return false;
    }
    if (read_proc("stat", text, sizeof(text)) > 4 &&
        !say(sock, "cpu", text + strspn(text, "cpu "))) {
        return false;
    }
    if (read_proc("meminfo", text, sizeof(text)) <= 0) {
        return true;
    }
    at = strstr(text, "MemTotal:");
    if (!at || sscanf(at, "MemTotal: %lu", &total) != 1) {
        return true;
    }
    at = strstr(text, "MemAvailable:");
    if (!at || sscanf(at, "MemAvailable: %lu", &available) != 1) {
        return true;
    }
    snprintf(memory, sizeof(memory), "%lu %lu", total, available);
    return say(sock, "memory", memory);
}

static bool say_process(int sock, int pid)
{
    char name[32], text[1024], command[COMMAND_MAX];
    const char *at;
    ssize_t len;
    int parent;

    snprintf(name, sizeof(name), "%d/stat", pid);
    if (read_proc(name, text, sizeof(text)) <= 0) {
        return true; /* it has just ended */
    }
    at = strrchr(text, ')');
    if (!at || sscanf(at, ") %*c %d", &parent) != 1 || parent == 2 ||
        pid == 2) {
        return true;
    }
    if (!say(sock, "process", text)) {
        return false;
    }
    snprintf(name, sizeof(name), "%d/cmdline", pid);
    len = read_proc(name, command, sizeof(command));
    for (ssize_t i = 0; i < len; i++) {
        /* Words end in NUL; a line break in one would end our line. */
        if (command[i] == '\0' || command[i] == '\n') {
            command[i] = ' ';
        }
    }
    return len <= 0 || say(sock, "command", command);
}

void top_run(int sock)
{
    DIR *dir;
    struct dirent *entry;
    bool heard = say_system(sock);

    dir = opendir(TOOLS_PROC);
    while (heard && dir && (entry = readdir(dir))) {
        int pid = atoi(entry->d_name);

        /* This process is here for the list alone. */
        heard = pid <= 0 || pid == getpid() || say_process(sock, pid);
    }
    if (dir) {
        closedir(dir);
    }
    if (heard) {
        send_frame(sock, 'x', "\0", 2);
    }
}
