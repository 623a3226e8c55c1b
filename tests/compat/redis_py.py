"""redis-py's RedisCluster, unmodified, against a Kvorum cluster: `redis_py.py HOST PORT`.

Fails by exception; prints one line at the end.
"""

import sys

import redis
from redis.cluster import LoadBalancingStrategy, RedisCluster
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, ResponseError


def main(host, port):
    client = RedisCluster(host=host, port=port, decode_responses=True)

    nodes = client.get_nodes()
    primaries, replicas = client.get_primaries(), client.get_replicas()
    assert (len(nodes), len(primaries), len(replicas)) == (9, 3, 6), [str(node.name) for node in nodes]
    assert client.ping(target_nodes=RedisCluster.ALL_NODES)

    # One command at a time, over all shards.
    for n in range(300):
        assert client.set(f"py:{n}", n)
    assert [int(client.get(f"py:{n}")) for n in range(300)] == list(range(300))
    assert client.get("py:none") is None
    assert client.set("py:0", "x", nx=True) is None
    assert client.set("py:0", "x", xx=True, get=True) == "0"
    assert client.incr("py:counter") == 1
    assert client.incrby("py:counter", 41) == 42
    assert client.append("py:text", "abc") == 3
    assert client.strlen("py:text") == 3
    assert client.expire("py:text", 100) is True
    assert 0 < client.ttl("py:text") <= 100
    assert client.persist("py:text") is True
    assert client.type("py:text") == "string"
    try:
        client.incr("py:text")
        raise AssertionError("INCR of a text must fail")
    except ResponseError as error:
        assert str(error) == "value is not an integer or out of range", error

    # Several keys: one slot by hash tag, many slots by the client's own splitting.
    assert client.mset({"{py}a": 1, "{py}b": 2})
    assert client.mget("{py}a", "{py}b", "{py}c") == ["1", "2", None]
    assert client.mset_nonatomic({f"py:m{n}": n for n in range(50)})
    assert client.mget_nonatomic([f"py:m{n}" for n in range(50)]) == [str(n) for n in range(50)]
    assert client.exists("py:m1", "py:m2", "py:none") == 2
    assert client.delete(*[f"py:m{n}" for n in range(50)]) == 50
    try:
        client.mset({"py:a": 1, "py:b": 2})
        raise AssertionError("MSET over two slots must fail")
    except RedisClusterException:
        pass

    # A pipeline over all shards.
    with client.pipeline() as pipe:
        for n in range(300):
            pipe.set(f"py:p{n}", n)
            pipe.get(f"py:p{n}")
        replies = pipe.execute()
    assert replies == [reply for n in range(300) for reply in (True, str(n))]

    # Keyless commands add up over the primaries.
    keys = set(client.scan_iter(match="py:p*", count=50))
    assert keys == {f"py:p{n}" for n in range(300)}, len(keys)
    assert set(client.keys("py:p*", target_nodes=RedisCluster.PRIMARIES)) == keys
    assert client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 604
    assert client.cluster_keyslot("py:0") == key_slot(b"py:0")
    assert client.info(target_nodes=primaries[0])["redis_mode"] == "cluster"

    # Reads from replicas.
    round_robin = LoadBalancingStrategy.ROUND_ROBIN
    reader = RedisCluster(host=host, port=port, load_balancing_strategy=round_robin, decode_responses=True)
    assert client.wait(2, 5000, target_nodes=client.get_node_from_key("py:0")) >= 1
    values = {reader.get("py:1") for _ in range(30)}
    assert values == {"1"}, values

    # RESP3.
    three = RedisCluster(host=host, port=port, protocol=3, decode_responses=True)
    assert three.get("py:1") == "1"

    assert client.flushall(target_nodes=RedisCluster.PRIMARIES)
    assert client.dbsize(target_nodes=RedisCluster.PRIMARIES) == 0
    print(f"redis-py {redis.__version__}: ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
