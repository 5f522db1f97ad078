/* The event streams: opening them with bounded concurrency, and checking every frame. A broadcast must come to each stream once and
 * in the same order as to all others, a targeted frame only to its target and once, and ids must grow on every stream.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOURCES = 8 }; /* loopback addresses to connect from: one has too few ports for a second round beside TIME_WAIT */
enum state { CLOSED, CONNECTING, WAITING_HEAD, WAITING_FRAME, OPEN };

struct stream {
    int fd;
    enum state state;
    bool with_last_id;
    uint32_t kept_len;
    char *kept; /* the beginning of a frame whose end has not come yet */
    uint64_t last_id, begun_ns, position; /* position: how many broadcasts it has seen, or was opened after */
    char *device, *uid, *token;
};

struct counters counters;
struct histogram open_latency, delivery_latency;
char first_refusal[128];
static struct stream *streams;
static uint32_t stream_count;
static char buffer[READ_BYTES + 16]; /* the rest: field names are compared without a look at the end */

uint32_t load_tokens(const char *path) {
    char line[4096];
    FILE *file = fopen(path, "r");
    if (!file) fail(path);
    while (fgets(line, sizeof line, file)) {
        if (stream_count % 1024 == 0) {
            streams = realloc(streams, (stream_count + 1024) * sizeof *streams);
            memset(streams + stream_count, 0, 1024 * sizeof *streams);
        }
        char *rest = line;
        struct stream *stream = &streams[stream_count++];
        stream->device = strdup(strsep(&rest, "\t\n"));
        stream->uid = rest ? strdup(strsep(&rest, "\t\n")) : "";
        stream->token = rest ? strdup(strsep(&rest, "\t\n")) : "";
    }
    fclose(file);
    return stream_count;
}

const char *device_name(uint32_t index) {
    return streams[index].device;
}

static void close_stream(struct stream *stream) {
    if (stream->state == OPEN) {
        counters.open--;
        counters.dropped++;
    } else if (stream->state != CLOSED) {
        counters.opening--;
        counters.refused++;
    }
    close(stream->fd);
    free(stream->kept);
    stream->kept = NULL;
    stream->kept_len = 0;
    stream->state = CLOSED;
}

static void send_request(struct stream *stream) {
    char request[8192], last_id[64] = "";
    if (stream->with_last_id) snprintf(last_id, sizeof last_id, "Last-Event-ID: %lu\r\n", stream->last_id);
    int len = snprintf(request, sizeof request,
                       "GET /events?token=%s&device=%s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
                       "Cache-Control: no-cache\r\nUser-Agent: load-client\r\n%s\r\n",
                       stream->token, stream->device, last_id);
    stream->state = WAITING_HEAD;
    if (send(stream->fd, request, len, MSG_NOSIGNAL) != len) close_stream(stream);
}

static void begin_open(uint32_t index, bool with_last_id) {
    struct stream *stream = &streams[index];
    if (stream->state != CLOSED) return;
    int one = 1;
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index % SOURCES)};
    stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (stream->fd < 0) fail("socket");
    /* Without this option bind() would take a port that is then free for no other destination. */
    setsockopt(stream->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(stream->fd, (struct sockaddr *)&source, sizeof source)) fail("bind");
    stream->begun_ns = now_ns();
    stream->state = CONNECTING;
    stream->with_last_id = with_last_id;
    if (!with_last_id) stream->position = broadcasts_sent;
    counters.opening++;
    int result = connect(stream->fd, (struct sockaddr *)&server_address, sizeof server_address);
    if (result && errno != EINPROGRESS) fail("connect");
    watch(stream->fd, KIND_STREAM, index, result ? EPOLLOUT : EPOLLIN, EPOLL_CTL_ADD);
    if (!result) send_request(stream);
}

void open_streams(uint32_t offset, uint32_t count, uint32_t concurrency, bool with_last_id, uint64_t deadline_ns) {
    uint32_t next = offset, end = offset + count < stream_count ? offset + count : stream_count;
    while ((next < end || counters.opening) && now_ns() < deadline_ns) {
        while (next < end && counters.opening < concurrency) begin_open(next++, with_last_id);
        if (counters.opening) step(deadline_ns);
    }
}

void drop_streams(bool reset) {
    struct linger abrupt = {.l_onoff = 1, .l_linger = 0};
    for (uint32_t i = 0; i < stream_count; i++) {
        if (streams[i].state == CLOSED) continue;
        if (reset) setsockopt(streams[i].fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof abrupt);
        close_stream(&streams[i]);
    }
}

uint64_t missing_broadcasts(void) {
    uint64_t missing = 0;
    for (uint32_t i = 0; i < stream_count; i++)
        if (streams[i].state == OPEN) missing += broadcasts_sent - streams[i].position;
    return missing;
}

static void check_broadcast(struct stream *stream, uint64_t number) {
    uint64_t place = stream->position;
    if (place > broadcast_order_len) place = broadcast_order_len;
    if (place == broadcast_order_len) {
        if (sends[number].seen) counters.double_errors++;
        broadcast_order[broadcast_order_len++] = number;
    } else if (broadcast_order[place] != number) {
        /* Lost, doubled or out of order: find out which, so that one fault is not counted for every frame that follows. */
        uint64_t found = broadcast_order_len;
        while (found && broadcast_order[found - 1] != number) found--;
        if (found && found - 1 < place) {
            counters.double_errors++;
            return;
        }
        counters.order_errors++;
        if (found)
            place = found - 1;
        else
            broadcast_order[place = broadcast_order_len++] = number;
    }
    sends[number].seen++;
    stream->position = place + 1;
}

static void check_frame(struct stream *stream, const char *data, const char *end, uint64_t id, uint64_t now) {
    counters.frames++;
    if (id <= stream->last_id) counters.id_errors++;
    stream->last_id = id;
    char *dot, *rest;
    unsigned long tag = strtoul(data + 1, &dot, 10);
    if (tag != own_tag || *dot != '.') {
        counters.foreign++;
        return;
    }
    uint64_t number = strtoul(dot + 1, &rest, 10);
    if (number >= send_count || *rest != '.' || end[-1] != '!') {
        counters.frame_errors++;
        return;
    }
    struct send *send = &sends[number];
    if (*data == 'b') {
        check_broadcast(stream, number);
    } else {
        if (send->target != (uint32_t)(stream - streams)) counters.target_errors++;
        if (send->seen++) counters.double_errors++;
    }
    counters.deliveries++;
    histogram_add(&delivery_latency, now - send->due_ns);
}

static void system_event(struct stream *stream, const char *name, uint64_t now) {
    if (!strncmp(name, "sys_connected", 13)) {
        if (stream->state != WAITING_FRAME) return;
        stream->state = OPEN;
        counters.opening--;
        counters.open++;
        counters.connected++;
        histogram_add(&open_latency, now - stream->begun_ns);
    } else if (!strncmp(name, "sys_replay_gap", 14)) {
        counters.gaps++;
    } else {
        counters.ends++;
    }
}

/* Handle all complete frames; return where the incomplete one begins. Lines of chunk sizes are no fields and fall through. */
static const char *parse_frames(struct stream *stream, const char *at, const char *end, uint64_t now) {
    const char *frame = at, *data = NULL, *data_end = NULL, *event = NULL, *line_end;
    uint64_t id = 0;
    for (; (line_end = memchr(at, '\n', end - at)); at = line_end + 1) {
        if (line_end - at > 1) {
            if (!memcmp(at, "id", 2)) {
                id = strtoul(at + 3, NULL, 10);
            } else if (!memcmp(at, "data:", 5)) {
                data = at + 5 + (at[5] == ' ');
                data_end = line_end;
            } else if (!memcmp(at, "event: ", 7)) {
                event = at + 7;
            } else if (*at == ':') {
                counters.heartbeats++;
            }
            continue;
        }
        if (event)
            system_event(stream, event, now);
        else if (data)
            check_frame(stream, data, data_end, id, now);
        data = event = NULL;
        id = 0;
        frame = line_end + 1;
    }
    return frame;
}

/* Return where the body begins, or NULL: the head is not complete, or the stream was refused. */
static const char *parse_head(struct stream *stream, const char *end) {
    const char *head_end = memmem(buffer, end - buffer, "\r\n\r\n", 4);
    if (!head_end) return NULL;
    if (memcmp(buffer + 8, " 200", 4)) {
        if (!*first_refusal) snprintf(first_refusal, sizeof first_refusal, "%.*s", (int)strcspn(buffer, "\r\"\\"), buffer);
        close_stream(stream);
        return NULL;
    }
    stream->state = WAITING_FRAME;
    return head_end + 4;
}

static void read_stream(struct stream *stream) {
    if (stream->kept_len) memcpy(buffer, stream->kept, stream->kept_len);
    ssize_t got = recv(stream->fd, buffer + stream->kept_len, READ_BYTES - 1 - stream->kept_len, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close_stream(stream);
        return;
    }
    counters.reads++;
    const char *end = buffer + stream->kept_len + got, *rest = buffer;
    *(char *)end = 0; /* stops strtoul at the end of the bytes */
    if (stream->state == WAITING_HEAD) rest = parse_head(stream, end);
    if (stream->state == CLOSED) return;
    rest = rest ? parse_frames(stream, rest, end, now_ns()) : buffer;
    stream->kept_len = end - rest;
    if (!stream->kept_len) return;
    if (stream->kept_len > READ_BYTES / 2) fail("a frame without an end");
    stream->kept = realloc(stream->kept, stream->kept_len);
    memcpy(stream->kept, rest, stream->kept_len);
}

void stream_event(uint32_t index, uint32_t events) {
    struct stream *stream = &streams[index];
    if (stream->state == CLOSED) return;
    if (stream->state == CONNECTING) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error || events & EPOLLERR) {
            close_stream(stream);
            return;
        }
        watch(stream->fd, KIND_STREAM, index, EPOLLIN, EPOLL_CTL_MOD);
        send_request(stream);
    } else {
        read_stream(stream);
    }
}

void counters_print(void) {
    printf(", \"open\": %u, \"connected\": %u, \"refused\": %u, \"dropped\": %u, \"frames\": %lu, \"deliveries\": %lu, "
           "\"foreign\": %lu, \"heartbeats\": %lu, \"reads\": %lu, \"gaps\": %lu, \"ends\": %lu",
           counters.open, counters.connected, counters.refused, counters.dropped, counters.frames, counters.deliveries,
           counters.foreign, counters.heartbeats, counters.reads, counters.gaps, counters.ends);
    printf(", \"missing\": %lu, \"errors\": {\"order\": %lu, \"id\": %lu, \"double\": %lu, \"target\": %lu, \"frame\": %lu}",
           missing_broadcasts(), counters.order_errors, counters.id_errors, counters.double_errors, counters.target_errors,
           counters.frame_errors);
    if (*first_refusal) printf(", \"first_refusal\": \"%s\"", first_refusal);
}
