/* The load client's commands. One line on standard input is one command with key=value options, the answer one line of JSON:
 *
 *   open count=N [offset=0 concurrency=256 last_id=0 seconds=60]   open streams
 *   drop [reset=0]                                                  close all streams of this process
 *   broadcast count=N [...]      targeted count=N [targets=N ...]   send, and wait until all is delivered and answered
 *       publishers=1 rate=0 after_delivery=0 burst=1 size=100 lines=0 array=0 others=0 ping=PATH seconds=60
 *   idle seconds=N       wait [seconds=60]                          read only, for a time, or until no broadcast is missing
 *   memory       pids [server=1,2] [redis=3]       quit
 *
 * Usage: load_client HOST PORT TOKENS_FILE [API_KEY]. TOKENS_FILE has one line per stream: device, tab, user, tab, token.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EVENTS = 256, LINE_BYTES = 4096 };

struct sockaddr_in server_address;
const char *api_key;
uint64_t overslept_max_ns;
static int epoll_fd;
static uint32_t tokens;

void fail(const char *what) {
    fprintf(stderr, "load client: %s: %s\n", what, strerror(errno));
    exit(1);
}

void watch(int fd, int kind, uint32_t index, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32 | index};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) fail("epoll_ctl");
}

void step(uint64_t until_ns) {
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wait = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
    int count = epoll_pwait2(epoll_fd, events, EVENTS, &timeout, NULL);
    if (count < 0 && errno != EINTR) fail("epoll_pwait2");
    if (!count && wait && now_ns() - until_ns > overslept_max_ns) overslept_max_ns = now_ns() - until_ns;
    for (int i = 0; i < count; i++) {
        uint32_t index = (uint32_t)events[i].data.u64;
        if (events[i].data.u64 >> 32 == KIND_STREAM)
            stream_event(index, events[i].events);
        else
            publisher_event(index, events[i].events);
    }
}

/* Find `name=` among a command's words. */
static const char *option(char **words, const char *name) {
    size_t len = strlen(name);
    for (; *words; words++)
        if (!strncmp(*words, name, len) && (*words)[len] == '=') return *words + len + 1;
    return NULL;
}

static double number(char **words, const char *name, double otherwise) {
    const char *text = option(words, name);
    return text ? strtod(text, NULL) : otherwise;
}

static uint64_t deadline(char **words) {
    return now_ns() + (uint64_t)(number(words, "seconds", 60) * 1e9);
}

static void command_open(char **words) {
    struct usage begun = usage_now();
    open_streams(number(words, "offset", 0), number(words, "count", tokens), number(words, "concurrency", 256),
                 number(words, "last_id", 0), deadline(words));
    usage_print(begun);
    counters_print();
    histogram_print("open_latency", &open_latency);
}

static void command_wait(char **words, bool until_complete) {
    uint64_t until = deadline(words);
    struct usage begun = usage_now();
    while (now_ns() < until && !(until_complete && !missing_broadcasts())) step(until);
    usage_print(begun);
    counters_print();
}

static void command_publish(char **words, bool broadcast) {
    struct job job = {.broadcast = broadcast,
                      .after_delivery = number(words, "after_delivery", 0),
                      .messages_array = number(words, "array", 0),
                      .count = number(words, "count", 1),
                      .rate = number(words, "rate", 0),
                      .publishers = number(words, "publishers", 1),
                      .burst = number(words, "burst", 1),
                      .size = number(words, "size", 100),
                      .lines = number(words, "lines", 0),
                      .targets = number(words, "targets", tokens),
                      .others = number(words, "others", 0),
                      .ping = option(words, "ping"),
                      .deadline_ns = deadline(words)};
    if (job.publishers > MAX_PUBLISHERS) job.publishers = MAX_PUBLISHERS;
    run_job(&job);
}

/* Return false for an unknown command. */
static bool run_command(char **words) {
    uint32_t open = counters.open, opening = counters.opening;
    counters = (struct counters){.open = open, .opening = opening};
    histogram_clear(&open_latency);
    histogram_clear(&delivery_latency);
    printf("{\"command\": \"%s\"", words[0]);
    if (!strcmp(words[0], "open"))
        command_open(words);
    else if (!strcmp(words[0], "broadcast") || !strcmp(words[0], "targeted"))
        command_publish(words, words[0][0] == 'b');
    else if (!strcmp(words[0], "idle") || !strcmp(words[0], "wait"))
        command_wait(words, words[0][0] == 'w');
    else if (!strcmp(words[0], "drop"))
        drop_streams(number(words, "reset", 0));
    else if (!strcmp(words[0], "memory"))
        memory_print();
    else if (!strcmp(words[0], "pids"))
        set_pids(option(words, "server"), option(words, "redis"));
    else
        return false;
    return true;
}

int main(int argc, char **argv) {
    char line[LINE_BYTES];
    if (argc < 4) {
        fprintf(stderr, "usage: load_client HOST PORT TOKENS_FILE [API_KEY]\n");
        return 2;
    }
    server_address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &server_address.sin_addr) != 1) fail("HOST must be an IPv4 address");
    api_key = argc > 4 ? argv[4] : NULL;
    own_tag = getpid();
    epoll_fd = epoll_create1(0);
    tokens = load_tokens(argv[3]);
    while (fgets(line, sizeof line, stdin)) {
        char *words[64] = {0}, *rest = line;
        for (int count = 0; count < 63 && rest;) {
            char *word = strsep(&rest, " \n");
            if (*word) words[count++] = word;
        }
        if (!words[0]) continue;
        if (!strcmp(words[0], "quit")) break;
        bool known = run_command(words);
        printf(known ? "}\n" : ", \"error\": \"unknown command\"}\n");
        fflush(stdout);
    }
    return 0;
}
