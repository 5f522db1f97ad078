/* Clocks, CPU time, memory and percentiles. Knows process ids, and nothing of HTTP or frames. */
#include "load.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PIDS = 64 };
struct group {
    int count;
    pid_t pids[MAX_PIDS];
};
static struct group server, redis;

uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

void histogram_clear(struct histogram *histogram) {
    memset(histogram, 0, sizeof *histogram);
}

static int bucket_of(uint64_t ns) {
    if (ns < 64) return (int)ns;
    int shift = 57 - __builtin_clzll(ns); /* leaves 7 significant bits */
    return (shift + 1) * 64 + (int)(ns >> shift) - 64;
}

static uint64_t bucket_top(int bucket) {
    if (bucket < 128) return bucket;
    int shift = bucket / 64 - 1;
    return ((uint64_t)(bucket % 64 + 64 + 1) << shift) - 1;
}

void histogram_add(struct histogram *histogram, uint64_t ns) {
    histogram->count++;
    histogram->buckets[bucket_of(ns)]++;
    if (ns > histogram->max) histogram->max = ns;
}

void histogram_print(const char *name, const struct histogram *histogram) {
    static const double shares[] = {0.5, 0.9, 0.99, 0.999};
    static const char *const names[] = {"p50", "p90", "p99", "p999"};
    printf(", \"%s\": {\"count\": %lu", name, histogram->count);
    for (int i = 0; i < 4 && histogram->count; i++) {
        uint64_t rank = (uint64_t)(shares[i] * histogram->count), below = 0;
        int bucket = 0;
        while (bucket < HISTOGRAM_BUCKETS - 1 && (below += histogram->buckets[bucket]) <= rank) bucket++;
        uint64_t top = bucket_top(bucket);
        printf(", \"%s_us\": %.1f", names[i], (top < histogram->max ? top : histogram->max) / 1e3);
    }
    if (histogram->count) printf(", \"max_us\": %.1f", histogram->max / 1e3);
    printf("}");
}

static void parse_pids(const char *text, struct group *group) {
    group->count = 0;
    for (char *end; text && *text && group->count < MAX_PIDS; text = *end ? end + 1 : end) {
        group->pids[group->count++] = (pid_t)strtol(text, &end, 10);
        if (end == text) return;
    }
}

void set_pids(const char *server_text, const char *redis_text) {
    if (server_text) parse_pids(server_text, &server);
    if (redis_text) parse_pids(redis_text, &redis);
}

/* The process clock counts all threads, also ended ones, to the nanosecond; /proc/PID/stat counts ticks of 10 ms. */
static uint64_t cpu_ns(const struct group *group) {
    uint64_t sum = 0;
    for (int i = 0; i < group->count; i++) {
        clockid_t clock;
        struct timespec time;
        if (clock_getcpuclockid(group->pids[i], &clock) || clock_gettime(clock, &time)) continue;
        sum += time.tv_sec * 1000000000ULL + time.tv_nsec;
    }
    return sum;
}

/* How long the main threads of the server were ready to run but had no core: what neighbours on the machine cost it. */
static uint64_t wait_ns(const struct group *group) {
    uint64_t sum = 0, ran, waited;
    for (int i = 0; i < group->count; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/schedstat", group->pids[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fscanf(file, "%lu %lu", &ran, &waited) == 2) sum += waited;
        fclose(file);
    }
    return sum;
}

struct usage usage_now(void) {
    struct timespec own;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    return (struct usage){.wall_ns = now_ns(),
                          .server_ns = cpu_ns(&server),
                          .redis_ns = cpu_ns(&redis),
                          .client_ns = own.tv_sec * 1000000000ULL + own.tv_nsec,
                          .server_wait_ns = wait_ns(&server)};
}

/* The client is called the bottleneck when it was busy nearly all the time and busier than each of the server's processes. */
void usage_print(struct usage since) {
    struct usage now = usage_now();
    double wall = now.wall_ns - since.wall_ns, server_ns = now.server_ns - since.server_ns;
    double client_share = (now.client_ns - since.client_ns) / wall;
    double server_share = server_ns / wall / (server.count ? server.count : 1);
    printf(", \"wall_us\": %.1f, \"server_cpu_us\": %.1f, \"redis_cpu_us\": %.1f, \"client_cpu_us\": %.1f, \"client_share\": %.3f, "
           "\"server_share\": %.3f, \"server_wait_us\": %.1f, \"client_is_bottleneck\": %s",
           wall / 1e3, server_ns / 1e3, (now.redis_ns - since.redis_ns) / 1e3, (now.client_ns - since.client_ns) / 1e3,
           client_share, server_share, (now.server_wait_ns - since.server_wait_ns) / 1e3,
           client_share > 0.85 && client_share > server_share ? "true" : "false");
}

/* Sum a field that is given in kB, over the lines of a file that begin with `field`. */
static uint64_t kilobytes(const char *path, const char *field) {
    char line[256];
    uint64_t sum = 0, value;
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)) && sscanf(line + strlen(field), ": %lu", &value) == 1) sum += value;
    fclose(file);
    return sum;
}

static uint64_t group_kilobytes(const struct group *group, const char *field) {
    uint64_t sum = 0;
    for (int i = 0; i < group->count; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", group->pids[i]);
        sum += kilobytes(path, field);
    }
    return sum;
}

/* Kernel memory is for the whole machine, both ends of every connection: only differences mean something. */
void memory_print(void) {
    char line[256];
    unsigned long pages = 0;
    FILE *file = fopen("/proc/net/sockstat", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *field = strncmp(line, "TCP:", 4) ? NULL : strstr(line, " mem ");
        if (field) pages = strtoul(field + 5, NULL, 10);
    }
    if (file) fclose(file);
    printf(", \"server_pss_kb\": %lu, \"server_rss_kb\": %lu, \"redis_rss_kb\": %lu, \"kernel_tcp_kb\": %lu, \"kernel_slab_kb\": %lu",
           group_kilobytes(&server, "Pss"), group_kilobytes(&server, "Rss"), group_kilobytes(&redis, "Rss"),
           pages * (unsigned long)sysconf(_SC_PAGESIZE) / 1024, kilobytes("/proc/meminfo", "Slab"));
}
