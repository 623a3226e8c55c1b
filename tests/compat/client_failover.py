"""One client of redis-py, unmodified, that writes while leaders come and go: `client_failover.py KIND KEY MASTER HOST:PORT...`.

KIND is `cluster`, `cluster-asyncio`, `sentinel` or `sentinel-asyncio`; the addresses are those of data ports or of Sentinel ports. It marks
growing numbers in the string KEY, one after the other, and prints `ok NUMBER` or `error KIND` for each. A number that failed is not
tried again. It goes on until it is ended.
"""

import asyncio
import itertools
import sys
import time

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

PACE = 0.005
# What docs/clients.md recommends. Clients of Sentinel repeat nothing by themselves: they would repeat it on the same server.
BACKOFF = ExponentialWithJitterBackoff(base=0.01, cap=0.1)
RETRIES = 10
TIMEOUTS = {"socket_timeout": 2, "socket_connect_timeout": 1}
OF_SENTINELS = {"socket_timeout": 1, "socket_connect_timeout": 1}
# The one that no node answers is none of its own.
ERRORS = (RedisError, RedisClusterException, OSError)


def failed(error):
    print(f"error {type(error).__name__}", flush=True)


def write(client, key):
    for number in itertools.count(1):
        try:
            client.setrange(key, number, "x")
        except ERRORS as error:
            failed(error)
        else:
            print(f"ok {number}", flush=True)
        time.sleep(PACE)


async def write_async(make, key):
    client = make()
    for number in itertools.count(1):
        try:
            await client.setrange(key, number, "x")
        except ERRORS as error:
            failed(error)
        else:
            print(f"ok {number}", flush=True)
        await asyncio.sleep(PACE)


def main(kind, key, master, *addrs):
    nodes = [(host, int(port)) for host, port in (addr.rsplit(":", 1) for addr in addrs)]
    if kind == "cluster":
        startup = [redis.cluster.ClusterNode(*node) for node in nodes]
        write(redis.RedisCluster(startup_nodes=startup, retry=Retry(BACKOFF, RETRIES), **TIMEOUTS), key)
    elif kind == "cluster-asyncio":
        startup = [redis.asyncio.cluster.ClusterNode(*node) for node in nodes]
        retry = AsyncRetry(BACKOFF, RETRIES)
        asyncio.run(write_async(lambda: redis.asyncio.RedisCluster(startup_nodes=startup, retry=retry, **TIMEOUTS), key))
    elif kind == "sentinel":
        never = Retry(NoBackoff(), 0)
        sentinel = redis.sentinel.Sentinel(nodes, sentinel_kwargs={**OF_SENTINELS, "retry": never})
        write(sentinel.master_for(master, retry=never, **TIMEOUTS), key)
    else:
        never = AsyncRetry(NoBackoff(), 0)
        sentinel = redis.asyncio.sentinel.Sentinel(nodes, sentinel_kwargs={**OF_SENTINELS, "retry": never})
        asyncio.run(write_async(lambda: sentinel.master_for(master, retry=never, **TIMEOUTS), key))


main(*sys.argv[1:])
