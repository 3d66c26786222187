/* The load generator: one epoll loop that opens connections and counts what arrives.
 *
 *     client PORT CONTROL_PORT PAYLOAD [PUBLISH_PATH]
 *
 * Commands come by line on standard input; each is answered with one line of JSON.
 *
 *     connect GROUP DOOR COUNT CONCURRENCY PATH   open connections, handshake to welcome
 *     request GROUP HEX                           what the group's clients send in `pump`
 *     fire BURST MILLISECONDS                     rounds of BURST publications to group 0
 *     pace RATE MILLISECONDS                      RATE publications a second to group 0
 *     pump GROUP DEPTH MILLISECONDS               requests and replies, DEPTH in flight each
 *     close GROUP
 *
 * Doors: ws, sio (Socket.IO over WebSocket), sse, http; ws-bare and sse-bare send no welcome.
 * A round is triggered by "BURST\n" on the control port or, with PUBLISH_PATH, by that many
 * POST requests; the next one starts when every client has all of it. In `pace` nothing waits, and
 * the latency of a publication counts from when it was due. A delivery is a message that holds
 * PAYLOAD. Whatever else goes wrong ends the process with a line on stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_GROUPS 4
#define MAX_DEPTH 64
#define READ_SIZE (256 * 1024)
/* Without progress for this long the run is given up. */
#define PATIENCE_NS 20000000000ull

enum door { WS, SIO, SSE, HTTP };
enum state { HEADERS, GREETING, NAMESPACE, READY };

struct conn {
    int fd;
    unsigned char group, door, state, bare, chunked;
    uint64_t started;
    uint64_t deliveries;
    /* What arrived and is not a whole message yet. */
    char *carry;
    size_t carried;
    /* When the requests in flight were sent, oldest first; allocated by `pump`. */
    uint64_t *sent_at;
    unsigned head;
};

struct group {
    struct conn *conns;
    size_t count;
    char *wire;
    size_t wire_size;
};

static int epoll_fd, port, control_fd = -1, timer_fd;
static const char *payload, *publish_path;
static size_t payload_size, payload_at;
static struct group groups[MAX_GROUPS];
static char buffer[READ_SIZE];

static enum { IDLE, CONNECTING, FIRING, PACING, PUMPING } command;
static uint64_t began, began_cpu, ends, progress;
static uint64_t expected, arrived, rounds, round_at, extra;
static int burst, pump_group, pump_depth;
/* Nanoseconds between two publications, how many are to be made, and have been. */
static uint64_t interval, paced, made;
static size_t opened, ready, concurrency;
static int connect_group;
static char connect_door[16], connect_path[512];

static _Noreturn void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "client: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    exit(1);
}

static uint64_t clock_ns(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}
static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* -- latencies: a histogram with 64 steps per power of two ------------------------------- */

static uint64_t histogram[64 * 64], recorded, longest;

static void record(uint64_t ns) {
    unsigned top = ns < 64 ? 6 : 63 - (unsigned)__builtin_clzll(ns);
    uint64_t step = ns < 64 ? ns : (ns >> (top - 6)) - 64;
    histogram[(top - 6) * 64 + step + (ns >= 64 ? 64 : 0)]++;
    recorded++;
    if (ns > longest) longest = ns;
}

static uint64_t percentile(double part) {
    uint64_t want = (uint64_t)(part * (double)recorded), seen = 0;
    for (unsigned index = 0; index < 64 * 64; index++) {
        seen += histogram[index];
        if (seen > want) {
            if (index < 64) return index;
            unsigned power = index / 64 - 1;
            return ((uint64_t)(index % 64) + 64) << power;
        }
    }
    return longest;
}

static void begin(int next) {
    memset(histogram, 0, sizeof histogram);
    recorded = longest = extra = 0;
    command = next;
    began = progress = now_ns();
    began_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static void answer(uint64_t count) {
    uint64_t ended = now_ns();
    printf("{\"count\":%llu,\"rounds\":%llu,\"seconds\":%.9f,\"p50\":%llu,\"p99\":%llu,"
           "\"max\":%llu,\"extra\":%llu,\"client_cpu\":%.9f}\n",
           (unsigned long long)count, (unsigned long long)rounds, (double)(ended - began) / 1e9,
           (unsigned long long)percentile(.5), (unsigned long long)percentile(.99),
           (unsigned long long)longest, (unsigned long long)extra,
           (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - began_cpu) / 1e9);
    fflush(stdout);
    command = IDLE;
}

/* -- sending -------------------------------------------------------------------------------- */

static void send_all(int fd, const char *data, size_t size) {
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent != (ssize_t)size) fail("short send (%zd of %zu): %s", sent, size, strerror(errno));
}

/* A masked frame, as a client's must be (RFC 6455, 5.3); returns its size. */
static size_t frame(char *out, int opcode, const char *data, size_t size) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t at = 0;
    out[at++] = (char)(0x80 | opcode);
    if (size < 126) {
        out[at++] = (char)(0x80 | size);
    } else {
        out[at++] = (char)(0x80 | 126);
        out[at++] = (char)(size >> 8);
        out[at++] = (char)size;
    }
    memcpy(out + at, mask, 4);
    at += 4;
    for (size_t i = 0; i < size; i++) out[at + i] = (char)(data[i] ^ mask[i % 4]);
    return at + size;
}

static void send_frame(struct conn *c, int opcode, const char *data, size_t size) {
    char out[160];
    if (size > 125) fail("a control frame of %zu bytes", size);
    send_all(c->fd, out, frame(out, opcode, data, size));
}

static int dial(int to) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0) fail("socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* -- rounds --------------------------------------------------------------------------------- */

static void start_round(void) {
    char out[65536];
    size_t at = 0;
    arrived = 0;
    expected = (uint64_t)burst * groups[0].count;
    rounds++;
    if (publish_path) {
        for (int i = 0; i < burst; i++)
            at += (size_t)snprintf(out + at, sizeof out - at,
                                   "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                                   "Content-Type: text/plain\r\nContent-Length: %zu\r\n\r\n%s",
                                   publish_path, payload_size, payload);
    } else {
        at = (size_t)snprintf(out, sizeof out, "%d\n", burst);
    }
    round_at = now_ns();
    send_all(control_fd, out, at);
}

static void set_timer(uint64_t ns) {
    struct timespec every = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};
    struct itimerspec timer = {.it_interval = every, .it_value = every};
    if (timerfd_settime(timer_fd, 0, &timer, NULL) < 0) fail("timer: %m");
}

/* Publishes what is due by now. */
static void keep_pace(void) {
    uint64_t due = (now_ns() - began) / interval + 1;
    if (due > paced) due = paced;
    if (due > made) {
        char out[32];
        send_all(control_fd, out, (size_t)sprintf(out, "%d\n", (int)(due - made)));
        made = due;
    }
    if (made == paced) set_timer(0);
}

static void send_request(struct conn *c) {
    c->sent_at[(c->head++) % MAX_DEPTH] = now_ns();
    send_all(c->fd, groups[c->group].wire, groups[c->group].wire_size);
    expected++;
}

static void open_next(void) {
    struct group *group = &groups[connect_group];
    while (opened < group->count && opened - ready < concurrency) {
        struct conn *c = &group->conns[opened++];
        char out[1024];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        c->group = (unsigned char)connect_group;
        c->bare = strstr(connect_door, "-bare") != NULL;
        c->door = !strncmp(connect_door, "ws", 2)    ? WS
                  : !strncmp(connect_door, "sio", 3) ? SIO
                  : !strncmp(connect_door, "sse", 3) ? SSE
                                                     : HTTP;
        c->started = now_ns();
        c->fd = dial(port);
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) fail("epoll: %m");
        if (c->door == HTTP) {
            c->state = READY;
            ready++;
            continue;
        }
        int size = snprintf(out, sizeof out, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n",
                            connect_path, port,
                            c->door == SSE ? "Accept: text/event-stream\r\n"
                                           : "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                                             "Sec-WebSocket-Version: 13\r\n"
                                             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
        send_all(c->fd, out, (size_t)size);
    }
}

static void connected(struct conn *c) {
    c->state = READY;
    record(now_ns() - c->started);
    ready++;
    progress = now_ns();
}

static int holds_payload(const char *data, size_t size) {
    if (size < payload_size) return 0;
    if (payload_at + payload_size <= size && !memcmp(data + payload_at, payload, payload_size))
        return 1;
    const char *found = memmem(data, size, payload, payload_size);
    if (found) payload_at = (size_t)(found - data);
    return found != NULL;
}

/* Counts a message; `now` is when it was read. */
static void message(struct conn *c, const char *data, size_t size, uint64_t now) {
    if (c->door != HTTP && !holds_payload(data, size)) {
        /* Errors would otherwise show as a stall only. */
        if (command == PUMPING) fail("unexpected reply: %.*s", (int)(size < 300 ? size : 300), data);
        return;
    }
    c->deliveries++;
    if (command == FIRING && c->group == 0) {
        record(now - round_at);
        arrived++;
    } else if (command == PACING && c->group == 0) {
        record(now - (began + (c->deliveries - 1) * interval));
        arrived++;
    } else if (command == PUMPING && c->group == pump_group) {
        record(now - c->sent_at[(c->head - (unsigned)pump_depth) % MAX_DEPTH]);
        arrived++;
        if (now < ends) {
            send_request(c);
        } else {
            /* Keeps head - depth the oldest in flight. */
            c->head++;
        }
    } else {
        extra++;
    }
}

static void text(struct conn *c, const char *data, size_t size, uint64_t now) {
    if (c->door == WS) {
        if (c->state == GREETING) {
            connected(c);
            return;
        }
        message(c, data, size, now);
        return;
    }
    switch (size ? data[0] : 0) {
    case '0':
        send_frame(c, 1, "40", 2);
        c->state = NAMESPACE;
        return;
    case '2':
        send_frame(c, 1, "3", 1);
        return;
    case '4':
        if (size > 1 && data[1] == '0' && c->state == NAMESPACE) {
            connected(c);
            return;
        }
        if (size > 1 && (data[1] == '2' || data[1] == '3')) {
            message(c, data, size, now);
            return;
        }
        /* fall through */
    default:
        fail("unexpected packet: %.*s", (int)(size < 200 ? size : 200), data);
    }
}

/* -- receiving: each returns how much of the data it took ---------------------------------- */

static size_t take_headers(struct conn *c, const char *data, size_t size) {
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    if (!end) return 0;
    const char *want = c->door == SSE ? "HTTP/1.1 200" : "HTTP/1.1 101";
    if (strncmp(data, want, 12))
        fail("refused: %.*s", (int)(size < 400 ? size : 400), data);
    size_t head = (size_t)(end - data);
    c->chunked = 0;
    for (size_t i = 0; i + 26 <= head; i++)
        if (!strncasecmp(data + i, "transfer-encoding: chunked", 26)) c->chunked = 1;
    c->state = GREETING;
    if (c->bare) connected(c);
    return head + 4;
}

static size_t take_frames(struct conn *c, const char *data, size_t size, uint64_t now) {
    size_t at = 0;
    while (size - at >= 2) {
        const unsigned char *p = (const unsigned char *)data + at;
        size_t header = 2, length = p[1] & 0x7f;
        if (p[1] & 0x80) fail("the server masks its frames");
        if (length == 126) {
            header = 4;
            if (size - at < header) break;
            length = (size_t)p[2] << 8 | p[3];
        } else if (length == 127) {
            fail("a frame of more than 64 KiB");
        }
        if (size - at < header + length) break;
        const char *body = data + at + header;
        at += header + length;
        switch (p[0]) {
        case 0x81:
        case 0x82:
            text(c, body, length, now);
            break;
        case 0x89:
            send_frame(c, 10, body, length);
            break;
        case 0x8a:
            break;
        case 0x88:
            fail("closed by the server: %d %.*s",
                 length >= 2 ? (unsigned char)body[0] << 8 | (unsigned char)body[1] : 1005,
                 length > 2 ? (int)length - 2 : 0, body + 2);
        default:
            fail("unexpected frame 0x%02x", p[0]);
        }
    }
    return at;
}

static size_t take_events(struct conn *c, const char *data, size_t size, uint64_t now) {
    size_t at = 0, whole = 0;
    const char *value = NULL;
    size_t length = 0;
    while (at < size) {
        const char *newline = memchr(data + at, '\n', size - at);
        if (!newline) break;
        const char *line = data + at;
        size_t line_size = (size_t)(newline - line);
        at += line_size + 1;
        if (line_size && line[line_size - 1] == '\r') line_size--;
        if (line_size == 0) {
            if (value) {
                if (c->state == GREETING)
                    connected(c);
                else
                    message(c, value, length, now);
            }
            value = NULL;
        } else if (line_size >= 5 && !memcmp(line, "data:", 5)) {
            value = line + 5;
            length = line_size - 5;
        }
        /* Whole events, and lines that carry no data. */
        if (!value) whole = at;
    }
    return whole;
}

static size_t take_stream(struct conn *c, const char *data, size_t size, uint64_t now) {
    if (!c->chunked) return take_events(c, data, size, now);
    size_t at = 0;
    for (;;) {
        size_t length = 0, head = at;
        for (;; head++) {
            if (head == size) return at;
            char digit = data[head];
            if (digit >= '0' && digit <= '9')
                length = length * 16 + (size_t)(digit - '0');
            else if ((digit | 32) >= 'a' && (digit | 32) <= 'f')
                length = length * 16 + (size_t)((digit | 32) - 'a' + 10);
            else
                break;
        }
        if (size - head < 2 || size - head - 2 < length + 2) return at;
        if (length == 0) fail("the stream ended");
        if (take_events(c, data + head + 2, length, now) != length)
            fail("an event that is split over chunks");
        at = head + 2 + length + 2;
    }
}

static size_t take_responses(struct conn *c, const char *data, size_t size, uint64_t now) {
    size_t at = 0;
    for (;;) {
        const char *end = memmem(data + at, size - at, "\r\n\r\n", 4);
        if (!end) return at;
        if (strncmp(data + at, "HTTP/1.1 2", 10))
            fail("refused: %.*s", (int)(size - at < 400 ? size - at : 400), data + at);
        size_t head = (size_t)(end - data) + 4, length = 0;
        const char *field = NULL;
        for (size_t i = at; i + 15 < head && !field; i++)
            if (!strncasecmp(data + i, "content-length:", 15)) field = data + i + 15;
        if (!field) fail("a response without Content-Length");
        length = strtoul(field, NULL, 10);
        if (size - head < length) return at;
        at = head + length;
        message(c, data + head, length, now);
    }
}

static void readable(struct conn *c) {
    size_t size = c->carried;
    if (size) memcpy(buffer, c->carry, size);
    ssize_t got = recv(c->fd, buffer + size, READ_SIZE - size, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) fail("connection lost: %s", got ? strerror(errno) : "end of file");
    uint64_t now = now_ns();
    size += (size_t)got;
    progress = now;
    size_t at = 0;
    if (c->state == HEADERS) at = take_headers(c, buffer, size);
    if (c->state != HEADERS) {
        switch (c->door) {
        case WS:
        case SIO:
            at += take_frames(c, buffer + at, size - at, now);
            break;
        case SSE:
            at += take_stream(c, buffer + at, size - at, now);
            break;
        case HTTP:
            at += take_responses(c, buffer + at, size - at, now);
            break;
        }
    }
    size_t left = size - at;
    if (left == READ_SIZE) fail("a message larger than %d bytes", READ_SIZE);
    if (left) {
        c->carry = realloc(c->carry, left);
        memcpy(c->carry, buffer + at, left);
    }
    c->carried = left;
}

/* -- commands ------------------------------------------------------------------------------- */

static void check_even(void) {
    for (size_t i = 0; i < groups[0].count; i++)
        if (groups[0].conns[i].deliveries != rounds * (uint64_t)burst)
            fail("client %zu got %llu of %llu messages", i,
                 (unsigned long long)(groups[0].conns[i].deliveries),
                 (unsigned long long)(rounds * (uint64_t)burst));
}

static void run_line(char *line) {
    int group, depth;
    long ms;
    size_t count, many;
    static char hex[8192];
    if (sscanf(line, "connect %d %15s %zu %zu %511s", &group, connect_door, &count, &many,
               connect_path) == 5) {
        if (groups[group].count) fail("group %d is connected", group);
        groups[group].conns = calloc(count, sizeof(struct conn));
        groups[group].count = count;
        connect_group = group;
        concurrency = many;
        opened = ready = 0;
        rounds = 0;
        begin(CONNECTING);
        open_next();
    } else if (sscanf(line, "request %d %8191s", &group, hex) == 2) {
        char raw[4096];
        size_t size = strlen(hex) / 2;
        for (size_t i = 0; i < size; i++) {
            unsigned byte;
            sscanf(hex + 2 * i, "%2x", &byte);
            raw[i] = (char)byte;
        }
        free(groups[group].wire);
        groups[group].wire = malloc(size + 16);
        if (groups[group].conns[0].door == HTTP) {
            memcpy(groups[group].wire, raw, size);
            groups[group].wire_size = size;
        } else {
            groups[group].wire_size = frame(groups[group].wire, 1, raw, size);
        }
        printf("{}\n");
        fflush(stdout);
    } else if (sscanf(line, "fire %d %ld", &burst, &ms) == 2) {
        for (size_t i = 0; i < groups[0].count; i++) groups[0].conns[i].deliveries = 0;
        if (control_fd < 0) fail("no control port");
        rounds = 0;
        begin(FIRING);
        ends = began + (uint64_t)ms * 1000000ull;
        start_round();
    } else if (sscanf(line, "pace %zu %ld", &many, &ms) == 2) {
        for (size_t i = 0; i < groups[0].count; i++) groups[0].conns[i].deliveries = 0;
        interval = 1000000000ull / many;
        paced = many * (uint64_t)ms / 1000;
        made = arrived = 0;
        expected = paced * groups[0].count;
        begin(PACING);
        set_timer(interval);
        keep_pace();
    } else if (sscanf(line, "pump %d %d %ld", &group, &depth, &ms) == 3) {
        pump_group = group;
        pump_depth = depth;
        expected = arrived = rounds = 0;
        begin(PUMPING);
        ends = began + (uint64_t)ms * 1000000ull;
        for (size_t i = 0; i < groups[group].count; i++) {
            struct conn *c = &groups[group].conns[i];
            if (!c->sent_at) c->sent_at = calloc(MAX_DEPTH, sizeof *c->sent_at);
            c->head = 0;
            for (int j = 0; j < depth; j++) send_request(c);
        }
    } else if (sscanf(line, "close %d", &group) == 1) {
        for (size_t i = 0; i < groups[group].count; i++) {
            close(groups[group].conns[i].fd);
            free(groups[group].conns[i].carry);
            free(groups[group].conns[i].sent_at);
        }
        free(groups[group].conns);
        groups[group].conns = NULL;
        groups[group].count = 0;
        printf("{}\n");
        fflush(stdout);
    } else {
        fail("unknown command: %s", line);
    }
}

static void step(void) {
    switch (command) {
    case CONNECTING:
        open_next();
        if (ready == groups[connect_group].count) answer(ready);
        break;
    case FIRING:
        if (arrived < expected) break;
        if (arrived > expected) fail("%llu messages too many",
                                     (unsigned long long)(arrived - expected));
        if (now_ns() < ends) {
            start_round();
        } else {
            check_even();
            answer(recorded);
        }
        break;
    case PACING:
    case PUMPING:
        if (arrived == expected) answer(recorded);
        break;
    case IDLE:
        break;
    }
}

int main(int argc, char **argv) {
    static char line[16384];
    size_t line_size = 0;
    struct epoll_event events[1024], event = {.events = EPOLLIN};
    if (argc < 4) fail("usage: client PORT CONTROL_PORT PAYLOAD [PUBLISH_PATH]");
    port = atoi(argv[1]);
    payload = argv[3];
    payload_size = strlen(payload);
    publish_path = argc > 4 ? argv[4] : NULL;
    epoll_fd = epoll_create1(0);
    event.data.ptr = NULL;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event) < 0) fail("standard input: %m");
    if (atoi(argv[2])) {
        control_fd = dial(atoi(argv[2]));
        event.data.ptr = &control_fd;
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, control_fd, &event);
    }
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    event.data.ptr = &timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, 1024, command == IDLE ? -1 : 1000);
        if (count < 0 && errno != EINTR) fail("epoll_wait: %m");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &control_fd) {
                if (recv(control_fd, buffer, sizeof buffer, 0) == 0)
                    fail("the control connection was closed");
            } else if (events[i].data.ptr == &timer_fd) {
                uint64_t times;
                if (read(timer_fd, &times, sizeof times) > 0 && command == PACING) keep_pace();
            } else if (events[i].data.ptr) {
                readable(events[i].data.ptr);
            } else {
                ssize_t got = read(0, line + line_size, sizeof line - line_size - 1);
                if (got <= 0) return 0;
                line_size += (size_t)got;
                line[line_size] = 0;
                char *newline = strchr(line, '\n');
                if (!newline) continue;
                *newline = 0;
                run_line(line);
                line_size = 0;
            }
        }
        step();
        if (command != IDLE && now_ns() - progress > PATIENCE_NS)
            fail("stalled: %llu of %llu messages, %zu of %zu connected",
                 (unsigned long long)arrived, (unsigned long long)expected, ready, opened);
    }
}
