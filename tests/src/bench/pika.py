"""Consumes with pika, one message at a time and each acked: how a Python worker usually does it.

Usage: pika.py URL QUEUE COUNT; prints the seconds from its consumer until the broker has all acks.
"""

import sys
import time

import pika

url, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
taken = 0
begun = 0.0


def on_open(connection):
    connection.channel(on_open_callback=on_channel)


def on_channel(channel):
    channel.add_on_close_callback(on_channel_closed)
    channel.basic_qos(prefetch_count=1, callback=lambda _: consume(channel))


def consume(channel):
    channel.basic_consume(queue, on_message, callback=on_registered)


def on_registered(_):
    global begun
    begun = time.monotonic()


def on_message(channel, method, _properties, _body):
    global taken
    channel.basic_ack(method.delivery_tag)
    taken += 1
    if taken == count:
        channel.close()


def on_channel_closed(channel, _reason):
    print(time.monotonic() - begun)
    channel.connection.close()


def on_closed(connection, _reason):
    connection.ioloop.stop()


def on_failed(_, error):
    sys.exit(f"cannot connect: {error!r}")


pika.SelectConnection(
    pika.URLParameters(url), on_open_callback=on_open, on_open_error_callback=on_failed, on_close_callback=on_closed
).ioloop.start()
sys.exit(0 if taken == count else f"{taken} of {count} messages")
