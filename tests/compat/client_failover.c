/* An application of hiredis, which knows no cluster and no Sentinel, while leaders come and go:
 * `client_failover KIND KEY MASTER HOST:PORT...`.
 *
 * KIND is `cluster` (it goes where MOVED says, and to the next node when one does not answer) or `sentinel` (the Sentinels say where the
 * master is, and are asked again after an error). It marks growing numbers in the string KEY, one after the other, and prints `ok NUMBER`
 * or `error KIND` for each. A number that failed is not tried again, unless the reply was MOVED: then it did not run. It goes on
 * until it is ended. */

#include <hiredis/hiredis.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct timeval CONNECT = {1, 0};
static const struct timeval REPLY = {2, 0};
static const struct timeval SENTINELS_REPLY = {1, 0};
static const useconds_t PACE_US = 5000;
static const int REDIRECTIONS = 5;

static char **addrs;
static int addr_count, asked;

static redisContext *open_connection(const char *addr, struct timeval reply) {
    char host[256];
    const char *colon = strrchr(addr, ':');
    if (colon == NULL || (size_t)(colon - addr) >= sizeof host) return NULL;
    memcpy(host, addr, (size_t)(colon - addr));
    host[colon - addr] = '\0';
    redisContext *connection = redisConnectWithTimeout(host, atoi(colon + 1), CONNECT);
    if (connection == NULL) return NULL;
    if (connection->err || redisSetTimeout(connection, reply) != REDIS_OK) {
        redisFree(connection);
        return NULL;
    }
    return connection;
}

/* Writes the master's address, if a Sentinel says one. */
static int ask_sentinels(const char *master, char *addr, size_t size) {
    int found = 0;
    for (int n = 0; n < addr_count && !found; n++) {
        redisContext *sentinel = open_connection(addrs[n], SENTINELS_REPLY);
        if (sentinel == NULL) continue;
        redisReply *reply = redisCommand(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME %s", master);
        if (reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2) {
            snprintf(addr, size, "%s:%s", reply->element[0]->str, reply->element[1]->str);
            found = 1;
        }
        if (reply != NULL) freeReplyObject(reply);
        redisFree(sentinel);
    }
    return found;
}

static redisContext *find(int is_cluster, const char *master) {
    char addr[300];
    if (is_cluster) return open_connection(addrs[asked++ % addr_count], REPLY);
    return ask_sentinels(master, addr, sizeof addr) ? open_connection(addr, REPLY) : NULL;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int is_cluster = strcmp(argv[1], "cluster") == 0;
    const char *key = argv[2], *master = argv[3];
    addrs = argv + 4;
    addr_count = argc - 4;
    redisContext *connection = NULL;
    /* hiredis writes to connections that the other side has closed. */
    signal(SIGPIPE, SIG_IGN);
    for (unsigned long number = 1;; number++) {
        char outcome[64] = "error no connection";
        for (int redirected = 0; redirected <= REDIRECTIONS; redirected++) {
            if (connection == NULL) connection = find(is_cluster, master);
            if (connection == NULL) break;
            redisReply *reply = redisCommand(connection, "SETRANGE %s %lu x", key, number);
            char moved[300] = "";
            if (reply == NULL) {
                int is_late = connection->err == REDIS_ERR_IO && (errno == EAGAIN || errno == EWOULDBLOCK);
                snprintf(outcome, sizeof outcome, "error %s", is_late ? "timeout" : "closed");
            } else if (reply->type == REDIS_REPLY_INTEGER) {
                snprintf(outcome, sizeof outcome, "ok %lu", number);
                freeReplyObject(reply);
                break;
            } else {
                snprintf(outcome, sizeof outcome, "error %.*s", (int)strcspn(reply->str, " "), reply->str);
                if (is_cluster) sscanf(reply->str, "MOVED %*d %299s", moved);
            }
            if (reply != NULL) freeReplyObject(reply);
            redisFree(connection);
            connection = moved[0] ? open_connection(moved, REPLY) : NULL;
            if (!moved[0]) break;
            if (connection == NULL) {
                snprintf(outcome, sizeof outcome, "error no connection");
                break;
            }
        }
        printf("%s\n", outcome);
        if (fflush(stdout) != 0) return 0;
        usleep(PACE_US);
    }
}
