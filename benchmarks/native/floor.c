/* The floor: what the kernel charges. One epoll loop, one write() per recipient and message,
 * frames made once per round, no framework, no limits, no history, no Python.
 *
 * Serves the three doors well enough for client.c and nothing else: it trusts its client, and
 * its handshakes answer no key. Prints {"port": …, "control": …}; "BURST\n" on the control
 * port publishes BURST messages to everybody.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum kind { NEW, WS, SIO, SSE, KINDS, LISTENER, CONTROL_LISTENER, CONTROL };

struct conn {
    int fd, kind;
    size_t carried;
    char *carry;
};

#define MAX_FDS 65536
#define READ_SIZE 65536
static struct conn *members[KINDS][MAX_FDS];
static size_t count[KINDS];
static struct conn conns[MAX_FDS];
static char wires[KINDS][1024];
static size_t wire_sizes[KINDS];
static const char *payload;
static int epoll_fd;
static char buffer[READ_SIZE];

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static void put(struct conn *c, const char *data, size_t size) {
    if (write(c->fd, data, size) != (ssize_t)size && errno != EPIPE && errno != ECONNRESET)
        fail("write");
}

static size_t frame(char *out, const char *data, size_t size) {
    size_t at = 0;
    out[at++] = (char)0x81;
    if (size < 126) {
        out[at++] = (char)size;
    } else {
        out[at++] = 126;
        out[at++] = (char)(size >> 8);
        out[at++] = (char)size;
    }
    memcpy(out + at, data, size);
    return at + size;
}

static void publish(const char *data) {
    static unsigned long position;
    char text[800];
    position++;
    int size = snprintf(text, sizeof text, "{\"type\":\"news\",\"data\":\"%s\",\"offset\":\"%lu\"}",
                        data, position);
    wire_sizes[WS] = frame(wires[WS], text, (size_t)size);
    size = snprintf(text, sizeof text, "42[\"news\",\"%s\",\"%lu\"]", data, position);
    wire_sizes[SIO] = frame(wires[SIO], text, (size_t)size);
    size = snprintf(text, sizeof text, "event: news\ndata: \"%s\"\nid: %lu\n\n", data, position);
    wire_sizes[SSE] = (size_t)sprintf(wires[SSE], "%x\r\n%s\r\n", size, text);
    for (int kind = WS; kind <= SSE; kind++)
        for (size_t i = 0; i < count[kind]; i++)
            put(members[kind][i], wires[kind], wire_sizes[kind]);
}

static void enter(struct conn *c, int kind) {
    c->kind = kind;
    members[kind][count[kind]++] = c;
}

static void leave(struct conn *c) {
    if (c->kind < KINDS && c->kind != NEW)
        for (size_t i = 0; i < count[c->kind]; i++)
            if (members[c->kind][i] == c) {
                members[c->kind][i] = members[c->kind][--count[c->kind]];
                break;
            }
    close(c->fd);
    free(c->carry);
    c->carry = NULL;
    c->carried = 0;
}

static size_t request(struct conn *c, char *data, size_t size) {
    static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                                  "Connection: Upgrade\r\nSec-WebSocket-Accept: none\r\n\r\n";
    static const char stream[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                                 "Transfer-Encoding: chunked\r\n\r\n"
                                 "1b\r\nevent: welcome\ndata: \"hi\"\n\n\r\n";
    static const char published[] = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n"
                                    "{\"success\":true}";
    char *end = memmem(data, size, "\r\n\r\n", 4), text[256];
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4, at;
    if (!strncmp(data, "GET /ws", 7)) {
        at = (size_t)sprintf(text, "%s", upgrade);
        at += frame(text + at, "{\"type\":\"welcome\"}", 18);
        put(c, text, at);
        enter(c, WS);
    } else if (!strncmp(data, "GET /socket.io/", 15)) {
        at = (size_t)sprintf(text, "%s", upgrade);
        at += frame(text + at, "0{\"sid\":\"0\"}", 12);
        put(c, text, at);
        enter(c, SIO);
    } else if (!strncmp(data, "GET /events", 11)) {
        put(c, stream, sizeof stream - 1);
        enter(c, SSE);
    } else {
        char *field = strcasestr(data, "content-length:"), body[1024];
        size_t length = field ? strtoul(field + 15, NULL, 10) : 0;
        if (size - head < length) return 0;
        /* {"event":"news","data":"..."}: the payload is between the last quotes but two. */
        snprintf(body, sizeof body, "%.*s", (int)length, data + head);
        char *from = strstr(body, "\"data\":\""), *to = strrchr(body, '"');
        if (from && to) {
            *to = 0;
            publish(from + 8);
        }
        put(c, published, sizeof published - 1);
        head += length;
    }
    return head;
}

static void answer(struct conn *c, const char *data, size_t size) {
    char text[2048];
    if (c->kind == WS) {
        put(c, text, frame(text, data, size));
    } else if (data[0] == '4' && data[1] == '0') {
        put(c, text, frame(text, "40{\"sid\":\"0\"}", 13));
    } else if (data[0] == '4' && data[1] == '2') {
        /* 42<id>["ack",...] is answered 43<id>[...]. */
        char reply[1024];
        const char *array = memchr(data, '[', size), *comma = memchr(data, ',', size);
        int n = sprintf(reply, "43%.*s[%.*s", (int)(array - data - 2), data + 2,
                        (int)(data + size - comma - 1), comma + 1);
        put(c, text, frame(text, reply, (size_t)n));
    }
}

static size_t frames(struct conn *c, unsigned char *data, size_t size) {
    size_t at = 0;
    while (size - at >= 6) {
        unsigned char *p = data + at;
        size_t header = 2, length = p[1] & 0x7f;
        if (length == 126) {
            header = 4;
            length = (size_t)p[2] << 8 | p[3];
        }
        if (size - at < header + 4 + length) break;
        unsigned char *mask = p + header, *body = mask + 4;
        for (size_t i = 0; i < length; i++) body[i] ^= mask[i & 3];
        if ((p[0] & 15) == 1) answer(c, (char *)body, length);
        at += header + 4 + length;
    }
    return at;
}

static void add(int fd, int kind) {
    if (fd < 0 || fd >= MAX_FDS) fail("file descriptor");
    struct conn *c = &conns[fd];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    c->fd = fd;
    c->kind = kind;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

static int listen_on(int kind) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 2048) < 0) fail("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    add(fd, kind);
    return ntohs(address.sin_port);
}

static void readable(struct conn *c) {
    size_t size = c->carried, at = 0;
    if (size) memcpy(buffer, c->carry, size);
    ssize_t got = read(c->fd, buffer + size, READ_SIZE - size - 1);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        leave(c);
        return;
    }
    size += (size_t)got;
    buffer[size] = 0;
    if (c->kind == NEW) {
        size_t taken;
        while (c->kind == NEW && (taken = request(c, buffer + at, size - at))) at += taken;
    } else if (c->kind == WS || c->kind == SIO) {
        at = frames(c, (unsigned char *)buffer, size);
    } else if (c->kind == CONTROL) {
        char *line = buffer, *newline;
        for (; (newline = strchr(line, '\n')); line = newline + 1)
            for (int i = atoi(line); i > 0; i--) publish(payload);
        at = (size_t)(line - buffer);
    }
    size_t left = size - at;
    if (left) {
        c->carry = realloc(c->carry, left);
        memcpy(c->carry, buffer + at, left);
    }
    c->carried = left;
}

int main(int argc, char **argv) {
    struct epoll_event events[1024];
    struct rlimit limit;
    int one = 1;
    if (argc < 2) return 2;
    payload = argv[1];
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    epoll_fd = epoll_create1(0);
    int port = listen_on(LISTENER), control = listen_on(CONTROL_LISTENER);
    printf("{\"port\":%d,\"control\":%d}\n", port, control);
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 1024, -1);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            if (c->kind != LISTENER && c->kind != CONTROL_LISTENER) {
                readable(c);
                continue;
            }
            int fd;
            while ((fd = accept4(c->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                add(fd, c->kind == LISTENER ? NEW : CONTROL);
            }
        }
    }
}
