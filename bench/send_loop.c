/* The reference: the least that a server can do to broadcast over event streams. One epoll loop answers GET /events with an event
 * stream's head and one connected frame, and POST /send by building one chunk and calling send() once for each stream. It has no
 * tokens, no targets, no replay and no bound; what it costs is what the kernel asks for one frame on one connection. It must not
 * grow features: every ratio in the table is measured against it.
 *
 * Usage: send_loop PORT. GET /usage tells the deliveries so far and the CPU time inside the send loop alone (getrusage).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 65536, REQUEST_BYTES = 16384, EVENTS = 256 };

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
                           "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "32\r\nevent: sys_connected\nretry: 3000\ndata: 127.0.0.1\n\n\r\n";

struct connection {
    bool open;
    int stream_index; /* place in `streams`, or -1 for a connection that speaks requests */
    size_t request_len;
    char *request; /* NULL for a stream: an idle stream keeps no buffer */
};

static struct connection connections[MAX_CONNECTIONS]; /* by file descriptor */
static int streams[MAX_CONNECTIONS];
static int stream_count;
static unsigned long long last_id, deliveries, refused, cpu_us;
static int epoll_fd;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static unsigned long long own_cpu_us(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ULL + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

static void forget(int fd) {
    struct connection *connection = &connections[fd];
    if (connection->stream_index >= 0) {
        int last = streams[--stream_count];
        streams[connection->stream_index] = last;
        connections[last].stream_index = connection->stream_index;
    }
    free(connection->request);
    memset(connection, 0, sizeof *connection);
    close(fd);
}

static void answer(int fd, const char *body) {
    char reply[512];
    int len = snprintf(reply, sizeof reply, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
    if (send(fd, reply, len, MSG_DONTWAIT | MSG_NOSIGNAL) != len) forget(fd);
}

static void broadcast(const char *data, size_t data_len) {
    char frame[REQUEST_BYTES + 64], chunk[REQUEST_BYTES + 96];
    int frame_len = snprintf(frame, sizeof frame, "id: %llu\ndata: %.*s\n\n", ++last_id, (int)data_len, data);
    int chunk_len = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", frame_len, frame);
    unsigned long long before = own_cpu_us();
    for (int i = 0; i < stream_count; i++) {
        if (send(streams[i], chunk, chunk_len, MSG_DONTWAIT | MSG_NOSIGNAL) == chunk_len)
            deliveries++;
        else
            refused++;
    }
    cpu_us += own_cpu_us() - before;
}

static void become_stream(int fd) {
    struct connection *connection = &connections[fd];
    free(connection->request);
    connection->request = NULL;
    connection->stream_index = stream_count;
    streams[stream_count++] = fd;
    if (send(fd, HEAD, sizeof HEAD - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) forget(fd);
}

/* Handle the one request in the buffer, if it is complete. */
static void handle(int fd) {
    struct connection *connection = &connections[fd];
    connection->request[connection->request_len] = 0;
    char *head_end = strstr(connection->request, "\r\n\r\n");
    if (!head_end) return;
    if (!strncmp(connection->request, "GET /events", 11)) {
        become_stream(fd);
        return;
    }
    char *length_field = strcasestr(connection->request, "\r\ncontent-length:");
    size_t body_len = length_field ? strtoul(length_field + 17, NULL, 10) : 0;
    char *body = head_end + 4, reply[256];
    if (connection->request + connection->request_len < body + body_len) return;
    if (!strncmp(connection->request, "POST /send", 10)) {
        char *data = strstr(body, "\"data\":\""), *data_end = data ? strchr(data + 8, '"') : NULL;
        if (data_end) broadcast(data + 8, data_end - data - 8);
        snprintf(reply, sizeof reply, "{\"code\": 1, \"msg\": \"success\", \"micro\": 0, \"result\": %d}", stream_count);
    } else {
        snprintf(reply, sizeof reply, "{\"deliveries\": %llu, \"refused\": %llu, \"cpu_us\": %llu, \"streams\": %d}", deliveries,
                 refused, cpu_us, stream_count);
    }
    connection->request_len = 0;
    answer(fd, reply);
}

static void readable(int fd) {
    struct connection *connection = &connections[fd];
    char spare[256];
    bool is_stream = connection->stream_index >= 0;
    char *into = is_stream ? spare : connection->request + connection->request_len;
    size_t space = is_stream ? sizeof spare : REQUEST_BYTES - 1 - connection->request_len;
    ssize_t got = recv(fd, into, space, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        forget(fd);
    } else if (got > 0 && !is_stream) {
        connection->request_len += got;
        handle(fd);
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
        if (fd < 0) return;
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd] = (struct connection){.open = true, .stream_index = -1, .request = malloc(REQUEST_BYTES)};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: send_loop PORT\n");
        return 2;
    }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listener, 4096)) fail("listen");
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event)) fail("epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if (connections[fd].open)
                readable(fd);
        }
    }
}
