"""redis-py's Sentinel, unmodified, while masters come and go: `redis_py_sentinel.py MASTER TAG PORT...`.

A thread of the synchronous client and a task of the asyncio client write numbers that only grow, one after the other, each to a
key of its own in the slot of TAG; a failed write is not counted and the next number is tried. At the end each key holds at
least the last number that was acknowledged. Prints `ready` when both have written, writes until standard input ends, and prints
the pauses between acknowledged writes.
"""

import asyncio
import sys
import threading
import time

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import MovedError, RedisError
from redis.retry import Retry

PATIENCE = 5
# By default redis-py waits for seconds before it asks the next Sentinel, or looks for the master again.
BACKOFF = ExponentialWithJitterBackoff(base=0.01, cap=0.1)
RETRIES = 3

stopped = threading.Event()


class Writes:
    """What one client wrote."""

    def __init__(self, kind):
        self.kind, self.acknowledged, self.failed = kind, 0, 0
        self.last, self.pauses = None, []
        self.errors = {}

    def took(self, number):
        now = time.monotonic()
        if self.last is not None and now - self.last > 0.1:
            self.pauses.append(now - self.last)
        self.last, self.acknowledged = now, number

    def lost(self, error):
        self.failed += 1
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def report(self, value):
        assert value >= self.acknowledged, f"{self.kind}: {self.acknowledged} was acknowledged, {value} is there"
        pauses = ", ".join(f"{pause:.3f}" for pause in self.pauses) or "none"
        print(
            f"redis-py Sentinel, {self.kind}: {self.acknowledged} writes, {self.failed} failed {self.errors}, "
            f"pauses above 0.1 s: {pauses}",
            flush=True,
        )


def is_elsewhere(error):
    """A shard of a cluster whose leader is another one by now says MOVED, which a client of one node does not follow."""
    return isinstance(error, MovedError)


def value_of(read):
    """What is there at the end, though the client may only learn now where that is."""
    for _ in range(100):
        try:
            return int(read())
        except (RedisError, OSError):
            time.sleep(0.05)
    return int(read())


def write(ports, master, key, writes):
    sentinel = redis.sentinel.Sentinel(
        [("127.0.0.1", port) for port in ports],
        sentinel_kwargs={"socket_timeout": 1, "retry": Retry(NoBackoff(), 0)},
    )
    client = sentinel.master_for(master, socket_timeout=PATIENCE, retry=Retry(BACKOFF, RETRIES))
    number = 0
    while not stopped.is_set():
        number += 1
        try:
            assert client.set(key, number)
            writes.took(number)
        except (RedisError, OSError) as error:
            writes.lost(error)
            if is_elsewhere(error):
                client.connection_pool.disconnect()
            time.sleep(0.005)
    assert sentinel.discover_slaves(master)
    client.connection_pool.disconnect()
    writes.report(value_of(lambda: client.get(key)))


async def write_async(ports, master, key, writes):
    sentinel = redis.asyncio.sentinel.Sentinel(
        [("127.0.0.1", port) for port in ports],
        sentinel_kwargs={"socket_timeout": 1, "retry": AsyncRetry(NoBackoff(), 0)},
    )
    client = sentinel.master_for(master, socket_timeout=PATIENCE, retry=AsyncRetry(BACKOFF, RETRIES))
    number = 0
    while not stopped.is_set():
        number += 1
        try:
            assert await client.set(key, number)
            writes.took(number)
        except (RedisError, OSError) as error:
            writes.lost(error)
            if is_elsewhere(error):
                await client.connection_pool.disconnect()
            await asyncio.sleep(0.005)
    await client.aclose()
    # By the other client: where the key is, is no matter of this one.
    checker = redis.sentinel.Sentinel([("127.0.0.1", port) for port in ports], socket_timeout=1).master_for(master)
    writes.report(value_of(lambda: checker.get(key)))


def main(master, tag, *ports):
    ports = [int(port) for port in ports]
    first, second = Writes("sync"), Writes("asyncio")
    failed = []

    def run():
        try:
            write(ports, master, f"{{{tag}}}:sync", first)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()

    def ready():
        while not (first.acknowledged and second.acknowledged):
            time.sleep(0.01)
        print("ready", flush=True)

    def wait():
        sys.stdin.read()
        stopped.set()

    for task in (ready, wait):
        threading.Thread(target=task, daemon=True).start()
    asyncio.run(write_async(ports, master, f"{{{tag}}}:asyncio", second))
    thread.join()
    assert not failed, failed
    print("redis-py Sentinel: ok", flush=True)


main(*sys.argv[1:])
