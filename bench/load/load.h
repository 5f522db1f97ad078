/* What the parts of the load client share: one process, one thread, one epoll loop. `streams` opens event streams and checks every
 * frame on them, `publish` sends over keep-alive connections, `measure` reads clocks and memory of the processes under test, `main`
 * reads commands from standard input and answers each with one line of JSON.
 */
#ifndef LOAD_H
#define LOAD_H
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { KIND_STREAM = 1, KIND_PUBLISHER = 2, MAX_PUBLISHERS = 256, READ_BYTES = 256 * 1024 };

/* ---- measure ---- */
enum { HISTOGRAM_BUCKETS = 64 * 64 };
struct histogram { /* latencies in ns, log-linear: 64 buckets for each power of two, so within 1.6 % */
    uint64_t count, max, buckets[HISTOGRAM_BUCKETS];
};
struct usage { /* a moment, or the difference of two */
    uint64_t wall_ns, server_ns, redis_ns, client_ns, server_wait_ns;
};
uint64_t now_ns(void);
void histogram_clear(struct histogram *histogram);
void histogram_add(struct histogram *histogram, uint64_t ns);
void histogram_print(const char *name, const struct histogram *histogram);
void set_pids(const char *server, const char *redis);
struct usage usage_now(void);
void usage_print(struct usage since);
void memory_print(void);

/* ---- the loop ---- */
void watch(int fd, int kind, uint32_t index, uint32_t events, int operation);
/* Handle what is ready; wait at most until `until_ns` (a now_ns() time) when nothing is. */
void step(uint64_t until_ns);
extern struct sockaddr_in server_address;
extern const char *api_key; /* or NULL */
extern uint64_t overslept_max_ns; /* how late step() came back at worst: this client had no core then */

/* ---- streams ---- */
struct counters { /* since the last command began, except `open` */
    uint32_t open, opening, connected, refused, dropped;
    uint64_t frames, deliveries, foreign, heartbeats, reads, gaps, ends;
    uint64_t order_errors, id_errors, double_errors, target_errors, frame_errors;
};
extern struct counters counters;
extern struct histogram open_latency, delivery_latency;
extern char first_refusal[128];
uint32_t load_tokens(const char *path);
const char *device_name(uint32_t index);
void open_streams(uint32_t offset, uint32_t count, uint32_t concurrency, bool with_last_id, uint64_t deadline_ns);
void drop_streams(bool reset);
void stream_event(uint32_t index, uint32_t events);
/* How many broadcasts of this process the open streams have still not seen. */
uint64_t missing_broadcasts(void);
void counters_print(void);

/* ---- publish ---- */
struct send { /* one frame that this process has asked for; its number is in the frame's data */
    uint64_t due_ns;
    uint32_t target, seen; /* target: a stream's index, or UINT32_MAX for a broadcast */
};
extern struct send *sends;
extern uint64_t send_count, broadcasts_sent;
extern unsigned long own_tag; /* this process's id, in the data of its frames: other load clients may send at the same time */
/* The sends in the order in which streams saw the broadcasts: all streams must agree. */
extern uint64_t *broadcast_order, broadcast_order_len;
struct job {
    bool broadcast;
    bool after_delivery;  /* the next burst waits until the last one has been delivered to all */
    bool messages_array;  /* form of a batch: {"messages": [...]}, otherwise one send per line */
    uint64_t count;       /* requests */
    double rate;          /* requests per second; 0: as fast as replies come */
    uint32_t publishers;  /* keep-alive connections */
    uint32_t burst;       /* requests written back to back, with `after_delivery` */
    uint32_t size;        /* bytes of data */
    uint32_t lines;       /* sends in one request, 0: a plain send */
    uint32_t targets;     /* a targeted send goes to each of the first so many streams in turn */
    uint32_t others;      /* streams that other load clients hold open: they belong to a broadcast's count */
    const char *ping;     /* a path that every second request asks for instead of a send, or NULL */
    uint64_t deadline_ns;
};
void run_job(const struct job *job);
void publisher_event(uint32_t index, uint32_t events);

void fail(const char *what) __attribute__((noreturn));
#endif
