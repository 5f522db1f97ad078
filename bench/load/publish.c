/* Sending over HTTP/1.1 keep-alive connections: at a fixed rate, where a send's latency counts from the moment it was due and not
 * from when a connection was free for it, or as fast as replies come. Every reply is checked: status and count of devices.
 */
#include "load.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REPLY_BYTES = 1 << 20, REQUEST_HEAD_BYTES = 1024, CAPACITY_STEP = 1 << 16 };

struct publisher {
    int fd; /* 0: not connected */
    bool busy, ping;
    uint64_t due_ns, asked; /* asked: deliveries that its request should lead to */
    uint32_t lines, expected_count; /* each line's count of devices; lines 0: a plain send */
    char *out, *in;
    size_t out_capacity, out_len, out_sent, in_len;
};

struct send *sends;
uint64_t send_count, broadcasts_sent;
uint64_t *broadcast_order, broadcast_order_len;
unsigned long own_tag;
static uint64_t send_capacity;
static struct publisher publishers[MAX_PUBLISHERS];
static struct histogram reply_latency, ping_latency;
static uint64_t expected, replies, wrong_status, wrong_result, broken, late_max_ns;
static char first_wrong_reply[200];

static uint64_t add_send(uint32_t target, uint64_t due_ns) {
    if (send_count == send_capacity) {
        send_capacity += CAPACITY_STEP;
        sends = realloc(sends, send_capacity * sizeof *sends);
        broadcast_order = realloc(broadcast_order, send_capacity * sizeof *broadcast_order);
    }
    sends[send_count] = (struct send){.due_ns = due_ns, .target = target};
    if (target == UINT32_MAX) broadcasts_sent++;
    return send_count++;
}

static void connect_publisher(uint32_t index) {
    struct publisher *publisher = &publishers[index];
    int one = 1;
    publisher->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(publisher->fd, (struct sockaddr *)&server_address, sizeof server_address)) fail("connect a publisher");
    setsockopt(publisher->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!publisher->in) publisher->in = malloc(REPLY_BYTES + 1);
    publisher->busy = false;
    watch(publisher->fd, KIND_PUBLISHER, index, EPOLLIN, EPOLL_CTL_ADD);
}

static void disconnect_publisher(struct publisher *publisher) {
    close(publisher->fd);
    publisher->fd = 0;
    if (publisher->busy) broken++;
    publisher->busy = false;
}

static void flush(uint32_t index) {
    struct publisher *publisher = &publishers[index];
    ssize_t sent = send(publisher->fd, publisher->out + publisher->out_sent, publisher->out_len - publisher->out_sent,
                        MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        disconnect_publisher(publisher);
        return;
    }
    bool was_whole = publisher->out_sent == 0;
    if (sent > 0) publisher->out_sent += sent;
    if (publisher->out_sent < publisher->out_len)
        watch(publisher->fd, KIND_PUBLISHER, index, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    else if (!was_whole)
        watch(publisher->fd, KIND_PUBLISHER, index, EPOLLIN, EPOLL_CTL_MOD);
}

/* Write one send as JSON; return its length. */
static size_t write_send(const struct job *job, char *at, uint64_t due_ns) {
    uint32_t target = job->broadcast ? UINT32_MAX : (uint32_t)(send_count % job->targets);
    char *begin = at;
    at += sprintf(at, "{\"data\":\"");
    char *data = at;
    at += sprintf(at, "%c%lu.%lu.", job->broadcast ? 'b' : 't', own_tag, add_send(target, due_ns));
    while (at < data + job->size - 1) *at++ = 'x';
    *at++ = '!';
    at += target == UINT32_MAX ? sprintf(at, "\"}") : sprintf(at, "\",\"device\":[\"%s\"]}", device_name(target));
    return at - begin;
}

static void build_send(const struct job *job, struct publisher *publisher) {
    uint32_t lines = job->lines ? job->lines : 1;
    size_t capacity = REQUEST_HEAD_BYTES + (size_t)lines * (job->size + 512);
    if (publisher->out_capacity < capacity) publisher->out = realloc(publisher->out, publisher->out_capacity = capacity);
    char *body = publisher->out + REQUEST_HEAD_BYTES, *at = body, head[REQUEST_HEAD_BYTES];
    if (job->messages_array) at += sprintf(at, "{\"messages\":[");
    for (uint32_t i = 0; i < lines; i++) {
        if (i && job->messages_array) *at++ = ',';
        at += write_send(job, at, publisher->due_ns);
        if (job->lines && !job->messages_array) *at++ = '\n';
    }
    if (job->messages_array) at += sprintf(at, "]}");
    int head_len = snprintf(head, sizeof head,
                            "POST /send HTTP/1.1\r\nHost: 127.0.0.1\r\n%s%s%sContent-Type: application/%s\r\nContent-Length: %zu\r\n\r\n",
                            api_key ? "X-SSE-API-Key: " : "", api_key ? api_key : "", api_key ? "\r\n" : "",
                            job->lines && !job->messages_array ? "x-ndjson" : "json", (size_t)(at - body));
    memmove(publisher->out + head_len, body, at - body);
    memcpy(publisher->out, head, head_len);
    publisher->out_len = head_len + (at - body);
}

static void build_ping(const struct job *job, struct publisher *publisher) {
    if (publisher->out_capacity < REQUEST_HEAD_BYTES)
        publisher->out = realloc(publisher->out, publisher->out_capacity = REQUEST_HEAD_BYTES);
    publisher->out_len =
        snprintf(publisher->out, REQUEST_HEAD_BYTES, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", job->ping);
}

static void issue(const struct job *job, uint32_t index, uint64_t number, uint64_t due_ns) {
    struct publisher *publisher = &publishers[index];
    uint64_t lateness = now_ns() - due_ns;
    if (lateness > late_max_ns) late_max_ns = lateness;
    publisher->due_ns = due_ns;
    publisher->ping = job->ping && number % 2;
    publisher->in_len = publisher->out_sent = 0;
    publisher->busy = true;
    if (publisher->ping)
        build_ping(job, publisher);
    else
        build_send(job, publisher);
    publisher->lines = job->lines;
    publisher->expected_count = job->broadcast ? counters.open + job->others : 1;
    publisher->asked = publisher->ping ? 0 : (uint64_t)(job->lines ? job->lines : 1) * (job->broadcast ? counters.open : 1);
    expected += publisher->asked;
    flush(index);
}

/* Whether the result is the count of devices, or for a batch a list of counts with one for each line. */
static bool result_is_right(const struct publisher *publisher, const char *body) {
    const char *at = strstr(body, "\"result\":");
    if (!at) return false;
    at += strlen("\"result\":");
    if (!publisher->lines) return strtoul(at, NULL, 10) == publisher->expected_count;
    at = strchr(at, '[');
    for (uint32_t i = 0; at && i < publisher->lines; i++) {
        char *after;
        if (strtoul(at + 1, &after, 10) != publisher->expected_count || (*after != ',' && *after != ']')) return false;
        if ((*after == ']') != (i == publisher->lines - 1)) return false;
        at = after;
    }
    return at != NULL;
}

static void check_reply(struct publisher *publisher, const char *body) {
    bool good_status = !memcmp(publisher->in + 8, " 200", 4);
    replies++;
    if (publisher->ping) {
        histogram_add(&ping_latency, now_ns() - publisher->due_ns);
        return;
    }
    histogram_add(&reply_latency, now_ns() - publisher->due_ns);
    bool good_result = good_status && result_is_right(publisher, body);
    if (!good_status) {
        wrong_status++;
        expected -= publisher->asked;
    } else if (!good_result) {
        wrong_result++;
    }
    if (!good_result && !*first_wrong_reply) {
        snprintf(first_wrong_reply, sizeof first_wrong_reply, "%.12s %.150s", publisher->in, body);
        for (char *at = first_wrong_reply; *at; at++)
            if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
    }
}

void publisher_event(uint32_t index, uint32_t events) {
    struct publisher *publisher = &publishers[index];
    if (!publisher->fd) return;
    if (events & EPOLLOUT) flush(index);
    if (!publisher->fd || !(events & ~EPOLLOUT)) return;
    ssize_t got = recv(publisher->fd, publisher->in + publisher->in_len, REPLY_BYTES - publisher->in_len, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        disconnect_publisher(publisher);
        return;
    }
    publisher->in_len += got;
    publisher->in[publisher->in_len] = 0;
    char *head_end = strstr(publisher->in, "\r\n\r\n");
    char *length_field = head_end ? strcasestr(publisher->in, "\r\ncontent-length:") : NULL;
    if (!length_field || publisher->in + publisher->in_len < head_end + 4 + strtoul(length_field + 17, NULL, 10)) return;
    publisher->busy = false;
    check_reply(publisher, head_end + 4);
}

static int free_publisher(const struct job *job) {
    for (uint32_t i = 0; i < job->publishers; i++)
        if (publishers[i].fd && !publishers[i].busy) return (int)i;
    return -1;
}

static uint32_t busy_publishers(void) {
    uint32_t busy = 0;
    for (int i = 0; i < MAX_PUBLISHERS; i++) busy += publishers[i].busy;
    return busy;
}

/* Return how many requests were made before the deadline. */
static uint64_t publish_all(const struct job *job) {
    uint64_t start = now_ns(), issued = 0;
    for (;;) {
        uint64_t now = now_ns(), wake = job->deadline_ns;
        while (issued < job->count) {
            uint64_t due = job->rate ? start + (uint64_t)(issued * 1e9 / job->rate) : now;
            bool burst_begins = job->after_delivery && issued % job->burst == 0;
            if (burst_begins && (counters.deliveries < expected || busy_publishers())) break;
            if (due > now) {
                wake = due;
                break;
            }
            int index = free_publisher(job);
            if (index < 0) break;
            issue(job, index, issued++, due);
        }
        if (now >= job->deadline_ns) return issued;
        if (issued == job->count && counters.deliveries >= expected && !busy_publishers()) return issued;
        step(wake < job->deadline_ns ? wake : job->deadline_ns);
    }
}

void run_job(const struct job *job) {
    for (uint32_t i = 0; i < job->publishers; i++)
        if (!publishers[i].fd) connect_publisher(i);
    histogram_clear(&reply_latency);
    histogram_clear(&ping_latency);
    expected = replies = wrong_status = wrong_result = broken = late_max_ns = overslept_max_ns = 0;
    *first_wrong_reply = 0;
    struct usage begun = usage_now();
    uint64_t issued = publish_all(job);
    usage_print(begun);
    counters_print();
    histogram_print("latency", &delivery_latency);
    histogram_print("reply", &reply_latency);
    if (job->ping) histogram_print("ping", &ping_latency);
    printf(", \"latency_from\": \"%s\", \"requests\": %lu, \"replies\": %lu, \"expected\": %lu, \"complete\": %s, "
           "\"wrong_status\": %lu, \"wrong_result\": %lu, \"broken\": %lu, \"late_max_us\": %.1f, \"overslept_max_us\": %.1f",
           job->rate ? "due" : "request", issued, replies, expected,
           issued == job->count && counters.deliveries == expected && replies == issued ? "true" : "false", wrong_status,
           wrong_result, broken, late_max_ns / 1e3, overslept_max_ns / 1e3);
    if (*first_wrong_reply) printf(", \"first_wrong_reply\": \"%s\"", first_wrong_reply);
}
