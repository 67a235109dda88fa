/* epoll oneshot|loop: an upper limit for this machine. One thread, one epoll, no allocation per request. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, SIZE = 8192 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int poller, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

/* Answer each received line; return whether the connection stays open. */
static int answer(int fd, int keep) {
    static const char pong[] = "+PONG\r\n";
    char data[SIZE];
    ssize_t count = recv(fd, data, sizeof data, 0);
    for (ssize_t i = 0; i < count; i++)
        if (data[i] == '\n' && send(fd, pong, sizeof pong - 1, MSG_NOSIGNAL) < 0) return 0;
    return count > 0 && keep;
}

int main(int argc, char **argv) {
    int keep = argc > 1 && strcmp(argv[1], "loop") == 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1024) < 0) fail("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &size) < 0) fail("getsockname");
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);

    int poller = epoll_create1(0);
    if (poller < 0) fail("epoll_create1");
    watch(poller, listener);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (!answer(fd, keep)) close(fd);
                continue;
            }
            for (int new; (new = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) watch(poller, new);
        }
    }
}
